//! Claims that are bound to volumes of this node: `hostPath` and `local` PersistentVolumes. Others need a storage driver.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod};
use kube::Api;

use super::host_path;
use crate::error::{Error, Result};
use crate::podutil;

/// The claim's directory on this node, and whether it is read-only.
pub async fn resolve(
    api: &kube::Client,
    pod: &Pod,
    source: &PersistentVolumeClaimVolumeSource,
) -> Result<(PathBuf, bool)> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(api.clone(), podutil::namespace(pod));
    let name = &source.claim_name;
    let claim = claims.get_opt(name).await?;
    let claim = claim.ok_or_else(|| Error::Missing(format!("persistentvolumeclaim \"{name}\" not found")))?;
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume_name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|_| bound);
    let volume_name =
        volume_name.ok_or_else(|| Error::Missing(format!("PVC {}/{name} is not bound", podutil::namespace(pod))))?;
    let volume = Api::<PersistentVolume>::all(api.clone()).get(&volume_name).await?;
    let spec = volume.spec.unwrap_or_default();
    let read_only = spec.access_modes.iter().flatten().all(|mode| mode == "ReadOnlyMany")
        && spec.access_modes.as_ref().is_some_and(|modes| !modes.is_empty());
    if let Some(source) = &spec.host_path {
        return Ok((host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())?, read_only));
    }
    if let Some(source) = &spec.local {
        return Ok((host_path::check(&source.path, "Directory")?, read_only));
    }
    Err(Error::Unsupported(format!("no volume plugin matched PersistentVolume {volume_name}")))
}
