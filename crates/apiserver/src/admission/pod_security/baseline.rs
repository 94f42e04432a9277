//! The baseline level: nothing that breaks out of a container by a known way.

use apimachinery::{Value, meta};

use super::super::pod_spec::items;
use super::words::{Faults, Violation, plural, quoted};

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: [&str; 5] = ["", "container_engine_t", "container_init_t", "container_kvm_t", "container_t"];
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

type Check = fn(&Value) -> Option<Violation>;

/// In order of upstream's check names; `true` marks those that the restricted level has a stricter form of.
const CHECKS: [(Check, bool); 12] = [
    (app_armor, false),
    (capabilities, true),
    (host_namespaces, false),
    (host_path_volumes, true),
    (host_ports, false),
    (host_probes, false),
    (privileged, false),
    (proc_mount, false),
    (selinux, false),
    (seccomp, true),
    (sysctls, false),
    (windows_host_process, false),
];

/// With `restricted`, checks with a stricter form are left to that level.
pub fn violations(pod: &Value, restricted: bool) -> Vec<Violation> {
    CHECKS.iter().filter(|(_, stricter)| !(restricted && *stricter)).filter_map(|(check, _)| check(pod)).collect()
}

fn flag(value: &Value, path: &[&str]) -> bool {
    meta::at(value, path).and_then(Value::as_bool).unwrap_or(false)
}

fn app_armor(pod: &Value) -> Option<Violation> {
    let mut faults = Faults::of_contexts(pod, |context| {
        let kind = meta::str_at(context, &["appArmorProfile", "type"]);
        (!matches!(kind, "" | "RuntimeDefault" | "Localhost")).then(|| kind.to_owned())
    });
    let mut setters: Vec<String> = Some(faults.setters()).filter(|s| !s.is_empty()).into_iter().collect();
    let annotations = meta::at(pod, &["metadata", "annotations"]).and_then(Value::as_object).into_iter().flatten();
    let bad: Vec<(&String, &str)> = annotations
        .filter(|(key, _)| key.starts_with(APPARMOR_ANNOTATION))
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(_, v)| !matches!(*v, "" | "runtime/default") && !v.starts_with("localhost/"))
        .collect();
    if !bad.is_empty() {
        let shown: Vec<String> = bad.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        setters.push(format!("{} {}", plural(bad.len(), "annotation", "annotations"), shown.join(", ")));
        faults.values.extend(bad.iter().map(|(_, value)| (*value).to_owned()));
    }
    let reason = plural(faults.values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    let detail = format!("{} must not set AppArmor profile type to {}", setters.join(" and "), faults.values());
    (!setters.is_empty()).then(|| Violation::new(reason, detail))
}

/// Capabilities that containers add, besides `allowed` ones.
pub fn added_capabilities(pod: &Value, allowed: &[&str]) -> Faults {
    Faults::of_containers(pod, |container| {
        let added = meta::strings(meta::at(container, &["securityContext", "capabilities", "add"]));
        added.into_iter().filter(|c| !allowed.contains(c)).map(str::to_owned).collect::<Vec<_>>()
    })
}

fn capabilities(pod: &Value) -> Option<Violation> {
    let faults = added_capabilities(pod, &DEFAULT_CAPABILITIES);
    let detail =
        || format!("{} must not include {} in securityContext.capabilities.add", faults.containers(), faults.values());
    faults.any().then(|| Violation::new("non-default capabilities", detail()))
}

fn host_namespaces(pod: &Value) -> Option<Violation> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| flag(pod, &["spec", field]));
    let shared: Vec<String> = shared.map(|field| format!("{field}=true")).collect();
    (!shared.is_empty()).then(|| Violation::new("host namespaces", shared.join(", ")))
}

fn host_path_volumes(pod: &Value) -> Option<Violation> {
    let volumes = items(pod, "volumes").filter(|volume| volume.get("hostPath").is_some_and(|path| !path.is_null()));
    let names: Vec<&str> = volumes.map(|volume| meta::str_at(volume, &["name"])).collect();
    let word = plural(names.len(), "volume", "volumes");
    (!names.is_empty()).then(|| Violation::new("hostPath volumes", format!("{word} {}", quoted(names.iter().copied()))))
}

fn host_ports(pod: &Value) -> Option<Violation> {
    let faults = Faults::of_containers(pod, |container| {
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let used = ports.filter_map(|port| port.get("hostPort")?.as_i64()).filter(|port| *port != 0);
        used.map(|port| port.to_string()).collect::<Vec<_>>()
    });
    let uses = plural(faults.containers.len(), "uses", "use");
    let ports = faults.values.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let word = plural(faults.values.len(), "hostPort", "hostPorts");
    faults.any().then(|| Violation::new("hostPort", format!("{} {uses} {word} {ports}", faults.containers())))
}

/// A probe or hook that names a host makes the kubelet connect there.
fn host_probes(pod: &Value) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let faults = Faults::of_containers(pod, |container| {
        let handlers = HANDLERS.iter().filter_map(|path| meta::at(container, path));
        let hosts = handlers.flat_map(|handler| {
            ["httpGet", "tcpSocket"].map(|action| meta::str_at(handler, &[action, "host"]).to_owned())
        });
        hosts.filter(|host| !host.is_empty()).collect::<Vec<_>>()
    });
    let uses = plural(faults.containers.len(), "uses", "use");
    let word = plural(faults.values.len(), "probe or lifecycle host", "probe or lifecycle hosts");
    let detail = || format!("{} {uses} {word} {}", faults.containers(), faults.values());
    faults.any().then(|| Violation::new("probe or lifecycle host", detail()))
}

fn privileged(pod: &Value) -> Option<Violation> {
    let faults = Faults::where_container(pod, |container| flag(container, &["securityContext", "privileged"]));
    let detail = || format!("{} must not set securityContext.privileged=true", faults.containers());
    faults.any().then(|| Violation::new("privileged", detail()))
}

/// Without the host's user namespace, an unmasked `/proc` gives nothing away.
fn proc_mount(pod: &Value) -> Option<Violation> {
    if meta::at(pod, &["spec", "hostUsers"]) == Some(&Value::Bool(false)) {
        return None;
    }
    let faults = Faults::of_containers(pod, |container| {
        let mount = meta::str_at(container, &["securityContext", "procMount"]);
        (!matches!(mount, "" | "Default")).then(|| mount.to_owned())
    });
    let detail = || format!("{} must not set securityContext.procMount to {}", faults.containers(), faults.values());
    faults.any().then(|| Violation::new("procMount", detail()))
}

fn selinux(pod: &Value) -> Option<Violation> {
    let text = |context: &Value, field: &str| meta::str_at(context, &["seLinuxOptions", field]).to_owned();
    let bad = |context: &Value| {
        let kind = text(context, "type");
        let unknown = !SELINUX_TYPES.contains(&kind.as_str());
        let at_fault = unknown || !text(context, "user").is_empty() || !text(context, "role").is_empty();
        at_fault.then(|| if unknown { kind } else { String::new() })
    };
    let mut faults = Faults::of_contexts(pod, bad);
    if !faults.any() {
        return None;
    }
    faults.values.remove("");
    let mut details = Vec::new();
    if !faults.values.is_empty() {
        details.push(format!("{} {}", plural(faults.values.len(), "type", "types"), faults.values()));
    }
    for field in ["user", "role"] {
        let set = Faults::of_contexts(pod, |context| Some(text(context, field)).filter(|value| !value.is_empty()));
        if set.any() {
            details.push(format!("{field} may not be set"));
        }
    }
    let detail = format!("{} set forbidden securityContext.seLinuxOptions: {}", faults.setters(), details.join("; "));
    Some(Violation::new("seLinuxOptions", detail))
}

/// The profile type that a security context sets.
pub fn seccomp_type(context: &Value) -> Option<&str> {
    Some(meta::str_at(context, &["seccompProfile", "type"])).filter(|kind| !kind.is_empty())
}

fn seccomp(pod: &Value) -> Option<Violation> {
    let faults =
        Faults::of_contexts(pod, |context| seccomp_type(context).filter(|t| *t == "Unconfined").map(str::to_owned));
    let detail =
        || format!("{} must not set securityContext.seccompProfile.type to {}", faults.setters(), faults.values());
    faults.any().then(|| Violation::new("seccompProfile", detail()))
}

fn sysctls(pod: &Value) -> Option<Violation> {
    let set = meta::at(pod, &["spec", "securityContext", "sysctls"]).and_then(Value::as_array).into_iter().flatten();
    let names = set.map(|sysctl| meta::str_at(sysctl, &["name"])).filter(|name| !SAFE_SYSCTLS.contains(name));
    let names: Vec<&str> = names.collect();
    (!names.is_empty()).then(|| Violation::new("forbidden sysctls", names.join(", ")))
}

fn windows_host_process(pod: &Value) -> Option<Violation> {
    let faults =
        Faults::of_contexts(pod, |context| flag(context, &["windowsOptions", "hostProcess"]).then(String::new));
    let detail = || format!("{} must not set securityContext.windowsOptions.hostProcess=true", faults.setters());
    faults.any().then(|| Violation::new("hostProcess", detail()))
}
