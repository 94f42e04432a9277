//! A pod's volumes on this node: made before its containers, kept up to date while they run, given back when they have ended.
//! Directories are upstream's: `<pod>/volumes/kubernetes.io~<plugin>/<name>`.

pub mod atomic;
pub mod claim;
pub mod empty_dir;
pub mod host_path;
pub mod image;
pub mod ownership;
pub mod payload;
pub mod subpath;
pub mod token;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::error::{Error, Result};
use crate::objects::Holder;
use crate::pods::VolumeRecord;
use crate::podutil;
use crate::shared::Handle;

/// A volume that is in place.
struct Mounted {
    path: PathBuf,
    read_only: bool,
    /// To be unmounted when the pod is over.
    is_mount: bool,
}

pub struct PodVolumes {
    shared: Handle,
    uid: String,
    mounted: HashMap<String, Mounted>,
    tokens: token::Tokens,
    /// Contents may have changed since they were written.
    stale: bool,
    /// What the downward API shows was written for this version of the pod.
    written_for: Option<String>,
}

impl PodVolumes {
    pub fn new(shared: Handle, pod: &Pod) -> Self {
        PodVolumes {
            shared,
            uid: podutil::uid(pod).to_owned(),
            mounted: HashMap::new(),
            tokens: token::Tokens::default(),
            stale: true,
            written_for: None,
        }
    }

    /// The volume's directory (or file, of a host path) on this node.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.mounted.get(name).map(|mounted| mounted.path.clone())
    }

    /// What is in place of the pod's volumes, for readers on this node.
    pub fn records(&self, pod: &Pod) -> Vec<VolumeRecord> {
        let volumes = podutil::spec(pod).volumes.iter().flatten().filter(|volume| volume.host_path.is_none());
        let record = |volume: &Volume| {
            let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
            Some(VolumeRecord { name: volume.name.clone(), path: self.path(&volume.name)?, claim })
        };
        volumes.filter_map(record).collect()
    }

    pub fn is_read_only(&self, name: &str) -> bool {
        self.mounted.get(name).is_some_and(|mounted| mounted.read_only)
    }

    /// Contents are written anew at the next sync.
    pub fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// When contents must be renewed by themselves: a token is to be replaced.
    pub fn due(&self) -> Option<Timestamp> {
        self.tokens.due()
    }

    /// Brings every volume of the pod into its place and up to date. Cheap if nothing changed.
    ///
    /// # Errors
    /// The text of the FailedMount event.
    pub async fn sync(&mut self, pod: &Pod, objects: &Holder, pod_ips: &[IpAddr]) -> Result<()> {
        // Addresses come with the sandbox, labels and annotations at any time.
        let version = format!("{:?} {pod_ips:?}", pod.metadata.resource_version);
        let token_due = self.due().is_some_and(|due| due <= Timestamp::now());
        if !self.stale && !token_due && self.written_for.as_ref() == Some(&version) {
            return Ok(());
        }
        for volume in podutil::spec(pod).volumes.iter().flatten() {
            self.sync_one(pod, volume, objects, pod_ips).await.map_err(|error| match error {
                Error::Cancelled => Error::Cancelled,
                error => Error::Invalid(format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name)),
            })?;
        }
        self.stale = false;
        self.written_for = Some(version);
        Ok(())
    }

    async fn sync_one(&mut self, pod: &Pod, volume: &Volume, objects: &Holder, pod_ips: &[IpAddr]) -> Result<()> {
        let fs_group = podutil::spec(pod).security_context.as_ref().and_then(|context| context.fs_group);
        if let Some(source) = &volume.host_path {
            let path = host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())?;
            self.put(volume, path, false, false);
        } else if let Some(source) = &volume.empty_dir {
            if self.mounted.contains_key(&volume.name) {
                return Ok(());
            }
            let path = self.dir("empty-dir", &volume.name);
            let is_mount = empty_dir::set_up(&path, source, self.shared.machine.memory_bytes)?;
            ownership::apply(&path, fs_group, false)?;
            self.put(volume, path, false, is_mount);
        } else if let Some(source) = &volume.persistent_volume_claim {
            if !self.mounted.contains_key(&volume.name) {
                let (path, read_only) = claim::resolve(&self.shared.api, pod, source).await?;
                self.put(volume, path, read_only || source.read_only == Some(true), false);
            }
        } else if let Some(source) = &volume.image {
            if !self.mounted.contains_key(&volume.name) {
                let path = self.dir(image::PLUGIN, &volume.name);
                image::set_up(&self.shared, pod, &volume.name, source, &path, objects).await?;
                self.put(volume, path, true, true);
            }
        } else if let Some((plugin, payload)) = self.payload(pod, volume, objects, pod_ips).await? {
            let path = self.dir(plugin, &volume.name);
            // Secrets never touch a disk.
            let is_mount = matches!(plugin, "secret" | "projected");
            if is_mount {
                empty_dir::ensure_tmpfs(&path, None)?;
            }
            atomic::write(&path, &payload, fs_group)?;
            self.put(volume, path, true, is_mount);
        } else {
            return Err(Error::Unsupported("no volume plugin matched".to_owned()));
        }
        Ok(())
    }

    /// The plugin's name and the files of volumes that are made of API data.
    async fn payload(
        &mut self,
        pod: &Pod,
        volume: &Volume,
        objects: &Holder,
        pod_ips: &[IpAddr],
    ) -> Result<Option<(&'static str, payload::Payload)>> {
        let facts = crate::container::spec::facts(&self.shared, pod_ips);
        Ok(if let Some(source) = &volume.config_map {
            Some(("configmap", payload::config_map_volume(pod, source, objects).await?))
        } else if let Some(source) = &volume.secret {
            Some(("secret", payload::secret_volume(pod, source, objects).await?))
        } else if let Some(source) = &volume.downward_api {
            let mode = payload::mode_of(source.default_mode);
            Some(("downward-api", payload::downward(pod, source.items.as_deref(), mode, &facts)?))
        } else if let Some(source) = &volume.projected {
            let made = payload::projected(pod, source, objects, &facts, &mut self.tokens, &self.shared.api).await?;
            Some(("projected", made))
        } else {
            None
        })
    }

    fn dir(&self, plugin: &str, name: &str) -> PathBuf {
        self.shared.config.pod_dir(&self.uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    fn put(&mut self, volume: &Volume, path: PathBuf, read_only: bool, is_mount: bool) {
        self.mounted.insert(volume.name.clone(), Mounted { path, read_only, is_mount });
    }

    /// Gives all mounts back, those of an earlier run of the daemon too. Idempotent.
    pub async fn unmount_all(&mut self) -> Result<()> {
        self.tokens = token::Tokens::default();
        self.mounted.retain(|_, mounted| !mounted.is_mount);
        let volumes = self.shared.config.pod_dir(&self.uid).join("volumes");
        crate::gc::unmount_below(&volumes)?;
        image::tear_down(&self.shared, &self.uid, &volumes).await
    }
}
