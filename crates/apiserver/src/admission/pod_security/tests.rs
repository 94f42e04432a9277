use super::super::testing::{Case, Cluster};
use super::*;

fn explained(level: Level, spec: Value) -> String {
    let policy = Policy { level, version: "latest".to_owned() };
    explain(&policy.evaluate(&json!({"metadata": {}, "spec": spec})))
}

fn hardened() -> Value {
    json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    })
}

#[test]
fn a_plain_pod_passes_baseline_and_fails_restricted_in_upstreams_words() {
    let plain = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(explained(Level::Baseline, plain.clone()), "");
    assert_eq!(
        explained(Level::Restricted, plain),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    assert_eq!(explained(Level::Restricted, hardened()), "");
}

#[test]
fn each_way_out_is_named() {
    let container = |fields: Value| {
        let mut container = json!({"name": "a"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"containers": [container]})
    };
    let context = |context: Value| container(json!({"securityContext": context}));
    let table = [
        (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
        (
            container(json!({"ports": [{"hostPort": 80}, {"hostPort": 0}, {}]})),
            "hostPort (container \"a\" uses hostPort 80)",
        ),
        (
            container(json!({"livenessProbe": {"httpGet": {"host": "10.0.0.1"}}})),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            context(json!({"privileged": true})),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            context(json!({"capabilities": {"add": ["SYS_TIME", "CHOWN", "NET_ADMIN"]}})),
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\", \"SYS_TIME\" in securityContext.capabilities.add)",
        ),
        (
            context(json!({"procMount": "Unmasked"})),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            context(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            context(json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_syncookies"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (spec, expected) in table {
        assert_eq!(explained(Level::Baseline, spec), expected);
    }
}

#[test]
fn restricted_replaces_the_looser_forms_of_its_checks() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = hardened();
        change(&mut spec);
        explained(Level::Restricted, spec)
    };
    assert_eq!(
        with(&|spec| spec["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}, {"name": "n", "nfs": {}}])),
        "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"
    );
    assert_eq!(
        with(&|spec| spec["containers"][0]["securityContext"]["capabilities"]["add"] =
            json!(["NET_BIND_SERVICE", "CHOWN"])),
        "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)"
    );
    assert_eq!(
        with(&|spec| spec["containers"][0]["securityContext"]["runAsNonRoot"] = json!(false)),
        "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)"
    );
    assert_eq!(
        with(&|spec| spec["securityContext"]["runAsUser"] = json!(0)),
        "runAsUser=0 (pod must not set runAsUser=0)"
    );
}

fn cluster(labels: Value) -> Cluster {
    let cluster = Cluster::new();
    cluster.put("namespaces", json!({"metadata": {"name": "ns", "labels": labels}}));
    cluster
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"hostPID": true, "containers": [{"name": "a"}]}})
}

#[test]
fn enforce_refuses_pods_and_warn_warns_of_templates_too() {
    let enforced = cluster(
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30"}),
    );
    let error = Case::create("", "pods", pod("p")).validate(&enforced, &PodSecurity).unwrap_err();
    assert_eq!(
        error.message,
        r#"pods "p" is forbidden: violates PodSecurity "baseline:v1.30": host namespaces (hostPID=true)"#
    );
    let mut labelled = pod("p");
    labelled["metadata"]["labels"] = json!({"a": "b"});
    assert!(Case::update("", "pods", labelled, pod("p")).validate(&enforced, &PodSecurity).is_ok());

    let warned = cluster(json!({"pod-security.kubernetes.io/warn": "baseline"}));
    let expected = [r#"would violate PodSecurity "baseline:latest": host namespaces (hostPID=true)"#];
    let mut case = Case::create("", "pods", pod("p"));
    case.validate(&warned, &PodSecurity).unwrap();
    assert_eq!(case.warnings, expected);
    let deployment = json!({"metadata": {"name": "d", "namespace": "ns"}, "spec": {"template": pod("")}});
    let mut case = Case::create("apps", "deployments", deployment);
    case.validate(&warned, &PodSecurity).unwrap();
    assert_eq!(case.warnings, expected);
}

#[test]
fn labels_are_checked_and_tightening_warns() {
    let cluster = cluster(json!({}));
    for name in ["a", "b", "c"] {
        cluster.put("pods", pod(name));
    }
    let namespace =
        |label: &str, value: &str| json!({"metadata": {"name": "ns", "labels": {format!("{PREFIX}{label}"): value}}});
    let old = json!({"metadata": {"name": "ns"}});
    let mut case = Case::update("", "namespaces", namespace("enforce", "baseline"), old.clone());
    case.validate(&cluster, &PodSecurity).unwrap();
    assert_eq!(
        case.warnings,
        [
            r#"existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest""#,
            "a (and 2 other pods): host namespaces",
        ]
    );
    for (label, value) in [("enforce", "strict"), ("warn-version", "1.30"), ("audit-version", "v1.x")] {
        let error =
            Case::update("", "namespaces", namespace(label, value), old.clone()).validate(&cluster, &PodSecurity);
        assert_eq!(error.unwrap_err().code, 422, "{label}={value}");
    }
}
