//! The files of volumes that are made of API data: ConfigMaps, Secrets, the downward API, tokens, and projections of these.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, SecretVolumeSource,
    VolumeProjection,
};

use super::token::Tokens;
use crate::container::fieldref::{self, Facts};
use crate::error::{Error, Result};
use crate::objects::Holder;
use crate::podutil;

const DEFAULT_MODE: u32 = 0o644;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// The owner, if not root.
    pub user: Option<u32>,
}

/// Files by path below the volume.
pub type Payload = BTreeMap<String, File>;

pub fn mode_of(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).map_or(DEFAULT_MODE, |mode| mode & 0o777)
}

pub async fn config_map_volume(pod: &Pod, source: &ConfigMapVolumeSource, objects: &Holder) -> Result<Payload> {
    let mode = mode_of(source.default_mode);
    let optional = source.optional == Some(true);
    config_map(pod, &source.name, source.items.as_deref(), mode, optional, objects).await
}

pub async fn secret_volume(pod: &Pod, source: &SecretVolumeSource, objects: &Holder) -> Result<Payload> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let mode = mode_of(source.default_mode);
    secret(pod, name, source.items.as_deref(), mode, source.optional == Some(true), objects).await
}

async fn config_map(
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    objects: &Holder,
) -> Result<Payload> {
    let data = match objects.config_map(name).await? {
        Some(object) => data_of(&object),
        None if optional => return Ok(Payload::new()),
        None => return Err(Error::Missing(format!("configmap \"{name}\" not found"))),
    };
    select(&data, items, mode, optional, &format!("configmap {}/{name}", podutil::namespace(pod)))
}

fn data_of(object: &ConfigMap) -> HashMap<String, Vec<u8>> {
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

async fn secret(
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    objects: &Holder,
) -> Result<Payload> {
    let data = match objects.secret(name).await? {
        Some(object) => object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect(),
        None if optional => return Ok(Payload::new()),
        None => return Err(Error::Missing(format!("secret \"{name}\" not found"))),
    };
    select(&data, items, mode, optional, &format!("secret {}/{name}", podutil::namespace(pod)))
}

/// All keys, or those that `items` names, under the paths that it gives them.
fn select(
    data: &HashMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    what: &str,
) -> Result<Payload> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |data: &Vec<u8>| File { data: data.clone(), mode, user: None };
        return Ok(data.iter().map(|(key, data)| (key.clone(), file(data))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let mode = item.mode.map_or(mode, |mode| mode_of(Some(mode)));
                payload.insert(item.path.clone(), File { data: data.clone(), mode, user: None });
            }
            None if optional => {}
            None => return Err(Error::Missing(format!("{what} references non-existent config key: {}", item.key))),
        }
    }
    Ok(payload)
}

pub fn downward(pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>, mode: u32, facts: &Facts<'_>) -> Result<Payload> {
    let mut payload = Payload::new();
    for item in items.unwrap_or_default() {
        let text = if let Some(reference) = &item.field_ref {
            fieldref::field(pod, &reference.field_path, facts)
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            match podutil::find_container(pod, name) {
                Some((_, container)) => fieldref::resource(container, selector, facts),
                None => Err(format!("container {name} not found")),
            }
        } else {
            Err(format!("the source of \"{}\" is empty", item.path))
        };
        let mode = item.mode.map_or(mode, |mode| mode_of(Some(mode)));
        let data = text.map_err(Error::Invalid)?.into_bytes();
        payload.insert(item.path.clone(), File { data, mode, user: None });
    }
    Ok(payload)
}

pub async fn projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    objects: &Holder,
    facts: &Facts<'_>,
    tokens: &mut Tokens,
    api: &kube::Client,
) -> Result<Payload> {
    let mode = mode_of(source.default_mode);
    let mut payload = Payload::new();
    for part in source.sources.iter().flatten() {
        payload.extend(projection(pod, part, mode, objects, facts, tokens, api).await?);
    }
    Ok(payload)
}

async fn projection(
    pod: &Pod,
    part: &VolumeProjection,
    mode: u32,
    objects: &Holder,
    facts: &Facts<'_>,
    tokens: &mut Tokens,
    api: &kube::Client,
) -> Result<Payload> {
    if let Some(source) = &part.config_map {
        let optional = source.optional == Some(true);
        return config_map(pod, &source.name, source.items.as_deref(), mode, optional, objects).await;
    }
    if let Some(source) = &part.secret {
        return secret(pod, &source.name, source.items.as_deref(), mode, source.optional == Some(true), objects).await;
    }
    if let Some(source) = &part.downward_api {
        return downward(pod, source.items.as_deref(), mode, facts);
    }
    if let Some(source) = &part.service_account_token {
        let token = tokens.get(api, pod, source).await?;
        let (mode, user) = token_access(pod, mode);
        return Ok(Payload::from([(source.path.clone(), File { data: token.into_bytes(), mode, user })]));
    }
    Err(Error::Unsupported("the projected volume has a source that this node does not support".to_owned()))
}

/// Tokens are readable by whoever the pod runs as, and by nobody else if that can be told.
fn token_access(pod: &Pod, mode: u32) -> (u32, Option<u32>) {
    let of_pod = podutil::spec(pod).security_context.as_ref();
    if of_pod.is_some_and(|context| context.fs_group.is_some()) {
        return (0o600, None);
    }
    let default = of_pod.and_then(|context| context.run_as_user);
    let containers = podutil::spec(pod).containers.iter().chain(podutil::init_containers(pod));
    let users: std::collections::BTreeSet<Option<i64>> = containers
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(default))
        .collect();
    match (users.len(), users.first().copied().flatten()) {
        (1, Some(user)) if user > 0 => (0o600, u32::try_from(user).ok()),
        _ => (mode, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_become_paths_with_their_own_modes() {
        let data = HashMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let items = |list: serde_json::Value| -> Vec<KeyToPath> { serde_json::from_value(list).unwrap() };
        let render = |result: Result<Payload>| match result {
            Ok(payload) => {
                payload.iter().map(|(path, file)| format!("{path}:{:o}", file.mode)).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(render(select(&data, None, 0o644, false, "x")), "a:644 b:644");
        let some = items(json!([{"key": "a", "path": "dir/x", "mode": 256}]));
        assert_eq!(render(select(&data, Some(&some), 0o644, false, "x")), "dir/x:400");
        let none = items(json!([{"key": "z", "path": "z"}]));
        assert_eq!(
            render(select(&data, Some(&none), 0o644, false, "configmap ns/cm")),
            "configmap ns/cm references non-existent config key: z"
        );
        assert_eq!(render(select(&data, Some(&none), 0o644, true, "x")), "");
    }

    #[test]
    fn a_token_belongs_to_the_one_user_of_the_pod() {
        let access = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            token_access(&pod, 0o644)
        };
        assert_eq!(access(json!({"containers": [{"name": "a"}]})), (0o644, None));
        let one = json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(access(one), (0o600, Some(5)));
        let two = json!({"containers": [{"name": "a", "securityContext": {"runAsUser": 5}}, {"name": "b"}]});
        assert_eq!(access(two), (0o644, None));
        assert_eq!(access(json!({"securityContext": {"fsGroup": 7}, "containers": [{"name": "a"}]})), (0o600, None));
    }
}
