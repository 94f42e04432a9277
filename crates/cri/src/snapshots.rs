//! Read-only views of images, for runtimes whose CRI cannot mount an image (containerd before 2.1): containerd's own snapshot
//! service, on the same socket, as in [`crate::events`]. The caller mounts what it is told.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::messages::container::ImageSpec;
use crate::messages::containerd::{
    Empty, MountsRequest, MountsResponse, RemoveSnapshotRequest, SnapshotMount, ViewSnapshotRequest,
};
use crate::messages::image::{ImageStatusRequest, ImageStatusResponse};
use crate::messages::runtime::{StatusRequest, StatusResponse};

const CALL: Duration = Duration::from_secs(120);
/// Where containerd's CRI plugin tells nothing else.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// Keeps a snapshot from containerd's collector while nothing of containerd's refers to it.
const ROOT_LABEL: &str = "containerd.io/gc.root";

impl Client {
    /// The mounts that show the image's files, to be carried out in their order. `key` names the view; asked again with the same
    /// key, the answer is the same.
    ///
    /// # Errors
    /// If the image is not on the machine, or the runtime is not containerd.
    pub async fn view_image(&self, image: &str, key: &str) -> Result<Vec<SnapshotMount>> {
        const VIEW: &str = "/containerd.services.snapshots.v1.Snapshots/View";
        const MOUNTS: &str = "/containerd.services.snapshots.v1.Snapshots/Mounts";
        let (snapshotter, parent) = (self.snapshotter().await?, self.chain_id(image).await?);
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.to_owned(),
            parent,
            labels: HashMap::from([(ROOT_LABEL.to_owned(), "1".to_owned())]),
        };
        let made: Result<MountsResponse> = self.transport.unary(VIEW, request, Some(CALL)).await;
        match made {
            Err(error) if error.is_already_exists() => {
                let request = MountsRequest { snapshotter, key: key.to_owned() };
                let known: MountsResponse = self.transport.unary(MOUNTS, request, Some(CALL)).await?;
                Ok(known.mounts)
            }
            made => Ok(made?.mounts),
        }
    }

    /// Gives a view back; nothing of it may be mounted any more. Idempotent.
    pub async fn remove_view(&self, key: &str) -> Result<()> {
        const REMOVE: &str = "/containerd.services.snapshots.v1.Snapshots/Remove";
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter().await?, key: key.to_owned() };
        match self.transport.unary::<_, Empty>(REMOVE, request, Some(CALL)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn snapshotter(&self) -> Result<String> {
        const METHOD: &str = "/runtime.v1.RuntimeService/Status";
        let answer: StatusResponse = self.transport.unary(METHOD, StatusRequest { verbose: true }, Some(CALL)).await?;
        let config: Value =
            answer.info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(config["containerd"]["snapshotter"].as_str().unwrap_or(DEFAULT_SNAPSHOTTER).to_owned())
    }

    /// The name of the snapshot of all the image's layers.
    async fn chain_id(&self, image: &str) -> Result<String> {
        const METHOD: &str = "/runtime.v1.ImageService/ImageStatus";
        let spec = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: true };
        let answer: ImageStatusResponse = self.transport.unary(METHOD, request, Some(CALL)).await?;
        let info: Value = answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let id = info["chainID"].as_str().filter(|id| !id.is_empty());
        id.map(str::to_owned).ok_or(Error::Incomplete { method: METHOD, field: "chainID" })
    }
}
