//! The CRI client: one method per call, typed errors, a deadline on each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::messages::container::*;
use crate::messages::image::*;
use crate::messages::runtime::*;
use crate::messages::sandbox::*;
use crate::messages::stats::*;
use crate::messages::streaming::*;
use crate::transport::Transport;

/// Calls that change or read runtime state; upstream's `--runtime-request-timeout`.
const CALL: Duration = Duration::from_secs(120);
/// Sandboxes may wait for the network plugin; upstream allows twice the normal time.
const SANDBOX: Duration = Duration::from_secs(240);

/// A client of one runtime endpoint (runtime and image service). Cloning shares the connection.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) transport: Transport,
    socket: PathBuf,
}

macro_rules! runtime {
    ($name:literal) => {
        concat!("/runtime.v1.RuntimeService/", $name)
    };
}

macro_rules! image {
    ($name:literal) => {
        concat!("/runtime.v1.ImageService/", $name)
    };
}

impl Client {
    /// `endpoint` is `unix:///path` or a plain absolute path. Connects at first use.
    pub fn new(endpoint: &str) -> Result<Self> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(Error::Endpoint(endpoint.to_owned()));
        }
        Ok(Client { transport: Transport::new(PathBuf::from(path)), socket: PathBuf::from(path) })
    }

    /// What all clones of this client have called so far, by the path of the call.
    pub fn operations(&self) -> Vec<(&'static str, crate::operations::Operation)> {
        self.transport.operations.all()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn version(&self) -> Result<VersionResponse> {
        let request = VersionRequest { version: "v1".to_owned() };
        self.transport.unary(runtime!("Version"), request, Some(Duration::from_secs(5))).await
    }

    /// Conditions `RuntimeReady` and `NetworkReady`.
    pub async fn status(&self) -> Result<RuntimeStatus> {
        const METHOD: &str = runtime!("Status");
        let request = StatusRequest { verbose: false };
        let answer: StatusResponse = self.transport.unary(METHOD, request, Some(Duration::from_secs(10))).await?;
        answer.status.ok_or(Error::Incomplete { method: METHOD, field: "status" })
    }

    /// Tells the runtime the node's pod CIDR, for runtimes that write their CNI configuration from a template.
    pub async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        let _: UpdateRuntimeConfigResponse =
            self.transport.unary(runtime!("UpdateRuntimeConfig"), request, Some(CALL)).await?;
        Ok(())
    }

    /// Creates and starts a sandbox; returns its id.
    pub async fn run_pod_sandbox(&self, config: PodSandboxConfig, runtime_handler: &str) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.to_owned() };
        let answer: RunPodSandboxResponse =
            self.transport.unary(runtime!("RunPodSandbox"), request, Some(SANDBOX)).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Kills what still runs in the sandbox and gives its network back. Idempotent.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let _: StopPodSandboxResponse =
            self.transport.unary(runtime!("StopPodSandbox"), request, Some(SANDBOX)).await?;
        Ok(())
    }

    /// Removes the sandbox and all its containers. Idempotent.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let _: RemovePodSandboxResponse =
            self.transport.unary(runtime!("RemovePodSandbox"), request, Some(CALL)).await?;
        Ok(())
    }

    pub async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        const METHOD: &str = runtime!("PodSandboxStatus");
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer: PodSandboxStatusResponse = self.transport.unary(METHOD, request, Some(CALL)).await?;
        answer.status.ok_or(Error::Incomplete { method: METHOD, field: "status" })
    }

    /// Sandboxes that match all given label values, newest and oldest alike.
    pub async fn list_pod_sandboxes(&self, labels: &[(&str, &str)]) -> Result<Vec<PodSandbox>> {
        let filter = PodSandboxFilter { label_selector: owned(labels), ..PodSandboxFilter::default() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer: ListPodSandboxResponse =
            self.transport.unary(runtime!("ListPodSandbox"), request, Some(CALL)).await?;
        Ok(answer.items)
    }

    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: CreateContainerResponse =
            self.transport.unary(runtime!("CreateContainer"), request, Some(CALL)).await?;
        Ok(answer.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        let _: StartContainerResponse = self.transport.unary(runtime!("StartContainer"), request, Some(CALL)).await?;
        Ok(())
    }

    /// The stop signal, then a kill after `grace`. Returns when the container has ended. Idempotent.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        let _: StopContainerResponse =
            self.transport.unary(runtime!("StopContainer"), request, Some(CALL.saturating_add(grace))).await?;
        Ok(())
    }

    /// Removes a container, killing it if it runs. Idempotent.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        let _: RemoveContainerResponse = self.transport.unary(runtime!("RemoveContainer"), request, Some(CALL)).await?;
        Ok(())
    }

    pub async fn list_containers(&self, labels: &[(&str, &str)]) -> Result<Vec<Container>> {
        let filter = ContainerFilter { label_selector: owned(labels), ..ContainerFilter::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer: ListContainersResponse =
            self.transport.unary(runtime!("ListContainers"), request, Some(CALL)).await?;
        Ok(answer.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        const METHOD: &str = runtime!("ContainerStatus");
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer: ContainerStatusResponse = self.transport.unary(METHOD, request, Some(CALL)).await?;
        answer.status.ok_or(Error::Incomplete { method: METHOD, field: "status" })
    }

    pub async fn update_container_resources(&self, id: &str, linux: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            annotations: std::collections::HashMap::new(),
        };
        let _: UpdateContainerResourcesResponse =
            self.transport.unary(runtime!("UpdateContainerResources"), request, Some(CALL)).await?;
        Ok(())
    }

    /// Makes the runtime open the log path anew, after a rotation has renamed the file.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: id.to_owned() };
        let _: ReopenContainerLogResponse =
            self.transport.unary(runtime!("ReopenContainerLog"), request, Some(CALL)).await?;
        Ok(())
    }

    /// Runs a command to its end. A zero `timeout` means no limit; at the limit the process is killed and the call fails
    /// with `DeadlineExceeded`.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Duration) -> Result<ExecSyncResponse> {
        let deadline = (!timeout.is_zero()).then(|| timeout.saturating_add(CALL));
        // Whole seconds, rounded up: the interface knows no finer unit.
        let seconds = timeout.as_millis().div_ceil(1000);
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        self.transport.unary(runtime!("ExecSync"), request, deadline).await
    }

    /// The URL of the runtime's streaming server for an exec session.
    pub async fn exec(&self, request: ExecRequest) -> Result<String> {
        let answer: ExecResponse = self.transport.unary(runtime!("Exec"), request, Some(CALL)).await?;
        Ok(answer.url)
    }

    pub async fn attach(&self, request: AttachRequest) -> Result<String> {
        let answer: AttachResponse = self.transport.unary(runtime!("Attach"), request, Some(CALL)).await?;
        Ok(answer.url)
    }

    pub async fn port_forward(&self, sandbox_id: &str, ports: Vec<i32>) -> Result<String> {
        let request = PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port: ports };
        let answer: PortForwardResponse = self.transport.unary(runtime!("PortForward"), request, Some(CALL)).await?;
        Ok(answer.url)
    }

    pub async fn container_stats(&self, id: &str) -> Result<Option<ContainerStats>> {
        let request = ContainerStatsRequest { container_id: id.to_owned() };
        let answer: ContainerStatsResponse =
            self.transport.unary(runtime!("ContainerStats"), request, Some(CALL)).await?;
        Ok(answer.stats)
    }

    pub async fn list_container_stats(&self, labels: &[(&str, &str)]) -> Result<Vec<ContainerStats>> {
        let filter = ContainerStatsFilter { label_selector: owned(labels), ..ContainerStatsFilter::default() };
        let request = ListContainerStatsRequest { filter: Some(filter) };
        let answer: ListContainerStatsResponse =
            self.transport.unary(runtime!("ListContainerStats"), request, Some(CALL)).await?;
        Ok(answer.stats)
    }

    /// Unimplemented in containerd 1.6.
    pub async fn list_pod_sandbox_stats(&self) -> Result<Vec<PodSandboxStats>> {
        let request = ListPodSandboxStatsRequest { filter: None };
        let answer: ListPodSandboxStatsResponse =
            self.transport.unary(runtime!("ListPodSandboxStats"), request, Some(CALL)).await?;
        Ok(answer.stats)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let request = ListImagesRequest { filter: None };
        let answer: ListImagesResponse = self.transport.unary(image!("ListImages"), request, Some(CALL)).await?;
        Ok(answer.images)
    }

    /// None if the image is not on the machine.
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let answer: ImageStatusResponse = self.transport.unary(image!("ImageStatus"), request, Some(CALL)).await?;
        Ok(answer.image)
    }

    /// Returns the image's reference. Pulls have no deadline of their own; drop the future to give up.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let request = PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config };
        let answer: PullImageResponse = self.transport.unary(image!("PullImage"), request, None).await?;
        Ok(answer.image_ref)
    }

    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(image_spec(image)) };
        let _: RemoveImageResponse = self.transport.unary(image!("RemoveImage"), request, Some(CALL)).await?;
        Ok(())
    }

    pub async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        let answer: ImageFsInfoResponse =
            self.transport.unary(image!("ImageFsInfo"), ImageFsInfoRequest {}, Some(CALL)).await?;
        Ok(answer.image_filesystems)
    }
}

fn owned(labels: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}
