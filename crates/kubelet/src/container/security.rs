//! The security context: what the pod says, overridden by what the container says, over what the image says. Pure.

use cri::messages::container::{Capability, LinuxContainerSecurityContext};
use cri::messages::image::Image;
use cri::messages::sandbox::{
    Int64Value, NamespaceOption, SELinuxOption, SecurityProfile, SecurityProfileKind, SupplementalGroupsPolicy,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

use crate::podutil;

/// Paths of /proc and /sys that containers must not see (upstream's defaults).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 6] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/kernel"];

pub fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: SecurityProfileKind::RuntimeDefault.into(), localhost_ref: String::new() }
}

/// # Errors
/// If the container must not run as root and would, or cannot be told; upstream's words.
pub fn context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    namespaces: NamespaceOption,
) -> Result<LinuxContainerSecurityContext, String> {
    let of_pod = podutil::spec(pod).security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    verify_non_root(pod, container, &own, &of_pod, run_as_user, image)?;

    let privileged = own.privileged == Some(true);
    let image_user = image.uid.as_ref().map(|uid| uid.value);
    let user = run_as_user.or(image_user);
    let groups = of_pod.fs_group.into_iter().chain(of_pod.supplemental_groups.clone().unwrap_or_default());
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let policy = if strict { SupplementalGroupsPolicy::Strict } else { SupplementalGroupsPolicy::Merge };
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let app_armor = own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref());
    let selinux = own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref());
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(capabilities(&own)),
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: selinux.map(selinux_option),
        run_as_user: user.map(|value| Int64Value { value }),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups.collect(),
        supplemental_groups_policy: policy.into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(if privileged { unconfined() } else { seccomp_profile(seccomp) }),
        apparmor: app_armor.map(app_armor_profile),
        ..LinuxContainerSecurityContext::default()
    })
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    own: &SecurityContext,
    of_pod: &PodSecurityContext,
    run_as_user: Option<i64>,
    image: &Image,
) -> Result<(), String> {
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: \"{}\", container: {})", podutil::full_name(pod), container.name);
    match (run_as_user, image.uid.as_ref().map(|uid| uid.value), image.username.as_str()) {
        (Some(0), ..) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), ..) => Ok(()),
        (None, Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, None, "") => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
        (None, Some(_), _) => Ok(()),
    }
}

fn capabilities(own: &SecurityContext) -> Capability {
    let list = own.capabilities.clone().unwrap_or_default();
    Capability {
        add_capabilities: list.add.unwrap_or_default(),
        drop_capabilities: list.drop.unwrap_or_default(),
        ..Capability::default()
    }
}

fn unconfined() -> SecurityProfile {
    SecurityProfile { profile_type: SecurityProfileKind::Unconfined.into(), localhost_ref: String::new() }
}

/// Without a word about it, no filter: upstream's default as long as `seccompDefault` is off.
fn seccomp_profile(profile: Option<&SeccompProfile>) -> SecurityProfile {
    match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => runtime_default(),
        Some("Localhost") => SecurityProfile {
            profile_type: SecurityProfileKind::Localhost.into(),
            localhost_ref: profile.and_then(|profile| profile.localhost_profile.clone()).unwrap_or_default(),
        },
        _ => unconfined(),
    }
}

fn app_armor_profile(profile: &AppArmorProfile) -> SecurityProfile {
    match profile.type_.as_str() {
        "Localhost" => SecurityProfile {
            profile_type: SecurityProfileKind::Localhost.into(),
            localhost_ref: profile.localhost_profile.clone().unwrap_or_default(),
        },
        "Unconfined" => unconfined(),
        _ => runtime_default(),
    }
}

fn selinux_option(options: &SELinuxOptions) -> SELinuxOption {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    SELinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(
        pod: serde_json::Value,
        container: serde_json::Value,
        image: Image,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "securityContext": pod}}))
        .unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c", "securityContext": container})).unwrap();
        context(&pod, &container, &image, NamespaceOption::default())
    }

    fn image(uid: Option<i64>, username: &str) -> Image {
        Image { uid: uid.map(|value| Int64Value { value }), username: username.to_owned(), ..Image::default() }
    }

    #[test]
    fn the_container_overrides_the_pod_and_the_pod_the_image() {
        let user = |pod, container, image| {
            let context = made(pod, container, image).unwrap();
            (context.run_as_user.map(|user| user.value), context.run_as_username)
        };
        assert_eq!(
            user(json!({"runAsUser": 1}), json!({"runAsUser": 2}), image(Some(3), "")),
            (Some(2), String::new())
        );
        assert_eq!(user(json!({"runAsUser": 1}), json!({}), image(Some(3), "")), (Some(1), String::new()));
        assert_eq!(user(json!({}), json!({}), image(Some(3), "")), (Some(3), String::new()));
        assert_eq!(user(json!({}), json!({}), image(None, "www")), (None, "www".to_owned()));
    }

    #[test]
    fn root_is_refused_where_it_must_not_be() {
        let root = json!({"runAsNonRoot": true});
        let refused = |container, image| made(root.clone(), container, image).unwrap_err();
        assert_eq!(
            refused(json!({}), image(Some(0), "")),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(refused(json!({"runAsUser": 0}), image(None, "")).contains("breaks non-root policy"));
        assert!(refused(json!({}), image(None, "www")).contains("non-numeric user (www)"));
        assert!(made(root.clone(), json!({"runAsUser": 7}), image(None, "")).is_ok());
        assert!(made(root, json!({"runAsNonRoot": false}), image(Some(0), "")).is_ok());
    }

    #[test]
    fn privileged_lifts_masks_and_filters() {
        let context = made(json!({}), json!({"privileged": true}), image(None, "")).unwrap();
        assert!(context.privileged && context.masked_paths.is_empty() && context.readonly_paths.is_empty());
        let plain = made(json!({}), json!({"seccompProfile": {"type": "RuntimeDefault"}}), image(None, "")).unwrap();
        assert!(!plain.masked_paths.is_empty() && plain.seccomp == Some(runtime_default()));
    }
}
