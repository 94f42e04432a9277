//! A node of its own: containerd in a temporary directory, two local images, a network plugin that only hands out addresses,
//! and a kubelet that can be stopped and started anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use client::{ClientFactory, Context, Informers};
use kubelet::{Config, Kubelet, PodStore};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::FakeApi;

pub const NODE: &str = "node-1";
pub const IMAGE: &str = "test.local/busybox:1";
/// Has the same files as [`IMAGE`].
pub const PAUSE: &str = "test.local/pause:1";

struct One(kube::Client);

impl ClientFactory for One {
    fn client_as(&self, _: &str, _: &[&str]) -> kube::Client {
        self.0.clone()
    }
}

struct Running {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    store: PodStore,
}

/// containerd and the task that keeps it alive.
struct Supervised {
    settings: cri::containerd::Settings,
    pid: i32,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

pub struct Machine {
    pub api: FakeApi,
    pub runtime: cri::Client,
    pub dir: tempfile::TempDir,
    containerd: Mutex<Option<Supervised>>,
    endpoint: String,
    kubelet: Mutex<Option<Running>>,
}

impl Machine {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("kubelet-test").tempdir().expect("a temporary directory");
        let cni = dir.path().join("cni");
        write_cni(&cni);
        let settings = cri::containerd::Settings {
            binary: cri::containerd::find_binary().expect("containerd is installed"),
            root_dir: dir.path().join("root"),
            state_dir: dir.path().join("run"),
            sandbox_image: PAUSE.to_owned(),
            cni_conf_dir: cni.join("conf"),
            cni_bin_dir: cni.join("bin"),
            log_file: dir.path().join("containerd.log"),
        };
        let socket = settings.socket();
        let supervisor = cri::containerd::Supervisor::start(settings.clone()).await.expect("containerd starts");
        import_images(dir.path(), &socket);
        let (endpoint, pid) = (supervisor.endpoint(), supervisor.pid());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(supervisor.run(shutdown.clone()));
        let machine = Machine {
            api: FakeApi::new(),
            runtime: cri::Client::new(&endpoint).expect("a socket address"),
            dir,
            containerd: Mutex::new(Some(Supervised { settings, pid, shutdown, task })),
            endpoint,
            kubelet: Mutex::new(None),
        };
        machine.start_kubelet();
        machine
    }

    pub fn start_kubelet(&self) {
        let shutdown = CancellationToken::new();
        let client = self.api.client();
        let context = Context {
            clients: Arc::new(One(client.clone())),
            informers: Informers::new(client.clone(), shutdown.clone()),
            client,
            shutdown: shutdown.clone(),
        };
        let mut config = Config::new(NODE, vec!["127.0.0.1".parse().unwrap()], self.dir.path(), &self.endpoint);
        config.max_container_back_off = Duration::from_secs(2);
        config.cluster_dns = vec!["10.43.0.10".parse().unwrap()];
        let kubelet = Kubelet::new(context, config).expect("a kubelet");
        let store = kubelet.store();
        let task = tokio::spawn(kubelet.run());
        *self.kubelet.lock() = Some(Running { shutdown, task, store });
    }

    pub async fn stop_kubelet(&self) {
        let running = self.kubelet.lock().take().expect("the kubelet runs");
        running.shutdown.cancel();
        running.task.await.expect("the kubelet does not panic");
    }

    pub fn store(&self) -> PodStore {
        self.kubelet.lock().as_ref().expect("the kubelet runs").store.clone()
    }

    pub async fn tear_down(&self) {
        for pod in self.api.list("pods") {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            self.api.delete("pods", "default", name, 1);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.api.list("pods").is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for sandbox in self.runtime.list_pod_sandboxes(&[]).await.unwrap_or_default() {
            let _ = self.runtime.stop_pod_sandbox(&sandbox.id).await;
            let _ = self.runtime.remove_pod_sandbox(&sandbox.id).await;
        }
        self.stop_kubelet().await;
        let supervised = self.containerd.lock().take().expect("containerd was started");
        supervised.shutdown.cancel();
        supervised.task.await.expect("the supervisor does not panic");
        // What the supervisor left running is found again by its pid file.
        let found = cri::containerd::Supervisor::start(supervised.settings).await.expect("containerd is adopted");
        assert!(found.adopted(), "containerd outlives its supervisor");
        found.stop().await.expect("containerd stops");
    }

    /// Kills containerd; its supervisor starts it again.
    pub async fn restart_containerd(&self) {
        let pid = self.containerd.lock().as_ref().expect("containerd runs").pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("a process");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.runtime.version().await.is_err() {
            assert!(Instant::now() < deadline, "containerd comes back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Creates a pod of this node. `spec` is merged over the defaults that the API server would set.
    pub fn create(&self, name: &str, spec: Value) -> Value {
        self.create_with(name, json!({}), spec)
    }

    pub fn create_with(&self, name: &str, meta: Value, spec: Value) -> Value {
        let mut metadata = json!({"name": name, "namespace": "default", "generation": 1});
        metadata.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
        let mut full = json!({"nodeName": NODE, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 1, "serviceAccountName": "default"});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.api.put(
            "pods",
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": full,
            "status": {"phase": "Pending"}}),
        )
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.api.get("pods", "default", name)
    }

    pub fn id_of(&self, name: &str, container: &str) -> String {
        let record = self.store().get("default", name).expect("the kubelet knows the pod");
        record.container(container).expect("the pod has the container").id.clone()
    }

    /// What a command in the container prints.
    pub async fn exec(&self, pod: &str, container: &str, command: &str) -> String {
        let command = ["sh", "-c", command].map(str::to_owned).to_vec();
        let id = self.id_of(pod, container);
        let output = self.runtime.exec_sync(&id, command, Duration::from_secs(10)).await.expect("exec works");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    /// `reason message` of all events on the pod, in the order of their names.
    pub fn events(&self, pod: &str) -> Vec<String> {
        let of_pod = |event: &Value| event["involvedObject"]["name"] == pod;
        let mut events: Vec<Value> = self.api.list("events").into_iter().filter(of_pod).collect();
        events.sort_by_key(|event| event["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap());
        let text = |event: &Value| {
            format!(
                "{} {}",
                event["reason"].as_str().unwrap_or_default(),
                event["message"].as_str().unwrap_or_default()
            )
        };
        events.iter().map(text).collect()
    }
}

/// Waits until `test` says so, else fails with what it last saw.
pub async fn eventually<T: std::fmt::Debug>(
    what: &str,
    limit: Duration,
    mut test: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match test() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what}: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn write_cni(dir: &Path) {
    std::fs::create_dir_all(dir.join("conf")).unwrap();
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    let list = json!({"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "addresses"}]});
    std::fs::write(dir.join("conf/10-test.conflist"), list.to_string()).unwrap();
    // An address from the container's id; the pod's network has nothing but a loopback.
    let script = r#"#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
ADD)
  nsenter --net="$CNI_NETNS" ip link set lo up 2>/dev/null
  a=$(printf '%d' "0x$(printf '%s' "$CNI_CONTAINERID" | cut -c1-2)"); b=$(printf '%d' "0x$(printf '%s' "$CNI_CONTAINERID" | cut -c3-4)")
  printf '{"cniVersion":"0.4.0","interfaces":[{"name":"%s","sandbox":"%s"}],"ips":[{"version":"4","interface":0,"address":"10.42.%d.%d/16"}]}' "$CNI_IFNAME" "$CNI_NETNS" "$a" "$b"
  ;;
esac
"#;
    for name in ["addresses", "loopback"] {
        let file = dir.join("bin").join(name);
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// Builds two images around the machine's static busybox and imports them.
fn import_images(dir: &Path, socket: &Path) {
    let rootfs = dir.join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin")).unwrap();
    for name in ["etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    run(Command::new("chroot").arg(&rootfs).args(["/bin/busybox", "--install", "-s", "/bin"]));
    let layer = dir.join("layer.tar");
    run(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&layer).arg("."));
    let digest: String =
        Sha256::digest(std::fs::read(&layer).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, command) in [(IMAGE, json!(["/bin/sh"])), (PAUSE, json!(["/bin/sleep", "1000000000"]))] {
        let image = dir.join("image");
        std::fs::create_dir_all(&image).unwrap();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
        std::fs::write(image.join("config.json"), config.to_string()).unwrap();
        let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        std::fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::copy(&layer, image.join("layer.tar")).unwrap();
        let archive: PathBuf = dir.join("image.tar");
        let files = ["manifest.json", "config.json", "layer.tar"];
        run(Command::new("tar").arg("-C").arg(&image).arg("-cf").arg(&archive).args(files));
        run(Command::new("ctr").arg("--address").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(&archive));
    }
}
