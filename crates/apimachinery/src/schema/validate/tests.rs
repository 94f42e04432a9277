//! Fixtures: objects in, upstream's texts out.

use serde_json::{Value, json};

use super::validate;
use crate::schema::builtin;

fn errors(kind: (&str, &str, &str), value: Value) -> Vec<String> {
    let schema = builtin();
    let (group, version, kind) = kind;
    let found = validate(schema, schema.by_kind(group, version, kind).unwrap(), &value);
    found.iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Vec<String> {
    let mut spec = spec;
    crate::meta::map_mut(&mut spec, "securityContext");
    spec["dnsPolicy"] = json!("ClusterFirst");
    if spec.get("restartPolicy").is_none() {
        spec["restartPolicy"] = json!("Always");
    }
    errors(("", "v1", "Pod"), json!({"metadata": {"name": "a"}, "spec": spec}))
}

#[test]
fn pods() {
    assert_eq!(pod(json!({"containers": [{"name": "a", "image": "x"}]})), [""; 0]);
    assert_eq!(pod(json!({})), ["spec.containers: Required value"]);
    assert_eq!(
        pod(json!({"containers": [{"image": "x", "imagePullPolicy": "Sometimes"}], "restartPolicy": "Perhaps"})),
        [
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never""#,
            "spec.containers[0].name: Required value",
            r#"spec.restartPolicy: Unsupported value: "Perhaps": supported values: "Always", "Never", "OnFailure""#,
        ]
    );
    assert_eq!(
        pod(json!({
            "containers": [
                {"name": "a", "image": "x", "ports": [{"containerPort": 70000}, {}], "env": [{"name": ""}]},
                {"name": "a", "image": "x", "resources": {"limits": {"cpu": "-1"}}},
            ],
            "terminationGracePeriodSeconds": -1,
        })),
        [
            r#"spec.containers[1].name: Duplicate value: "a""#,
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].containerPort: Required value",
            r#"spec.containers[1].resources.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0"#,
            "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
}

#[test]
fn deployments() {
    let found = errors(
        ("apps", "v1", "Deployment"),
        json!({"spec": {
            "replicas": -1,
            "strategy": {"type": "Fast", "rollingUpdate": {"maxSurge": "25", "maxUnavailable": -2}},
            "template": {"metadata": {"labels": {"a b": "ok"}}, "spec": {
                "containers": [{"name": "a", "image": "x"}], "dnsPolicy": "Default", "restartPolicy": "Always",
            }},
        }}),
    );
    assert_eq!(found.len(), 6, "{found:#?}");
    assert_eq!(found[0], "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
    assert_eq!(found[1], "spec.selector: Required value");
    assert!(
        found[2].starts_with(r#"spec.strategy.rollingUpdate.maxSurge: Invalid value: "25": a valid percent string"#)
    );
    assert_eq!(
        found[3],
        "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: -2: must be greater than or equal to 0"
    );
    assert_eq!(
        found[4],
        r#"spec.strategy.type: Unsupported value: "Fast": supported values: "Recreate", "RollingUpdate""#
    );
    assert!(found[5].starts_with(r#"spec.template.metadata.labels: Invalid value: "a b": name part must consist of"#));
}

#[test]
fn services_and_others() {
    assert_eq!(
        errors(
            ("", "v1", "Service"),
            json!({"spec": {
                "type": "Cluster", "sessionAffinity": "None", "externalIPs": ["1.2.3"],
                "ports": [{"protocol": "TCP"}, {"port": 80, "protocol": "HTTP", "targetPort": "a_b"}],
            }})
        )[1..],
        [
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            r#"spec.ports[1].protocol: Unsupported value: "HTTP": supported values: "SCTP", "TCP", "UDP""#,
            r#"spec.ports[1].targetPort: Invalid value: "a_b": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"#,
            r#"spec.type: Unsupported value: "Cluster": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        ]
    );
    assert_eq!(
        errors(("rbac.authorization.k8s.io", "v1", "RoleBinding"), json!({"roleRef": {"kind": "Pod", "name": "x"}})),
        [r#"roleRef.kind: Unsupported value: "Pod": supported values: "ClusterRole", "Role""#]
    );
    assert_eq!(
        errors(("coordination.k8s.io", "v1", "Lease"), json!({"spec": {"leaseDurationSeconds": 0}})),
        ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
    );
    let found = errors(("", "v1", "ConfigMap"), json!({"data": {"a/b": "x"}}));
    assert!(
        found[0].starts_with(r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of"#),
        "{found:?}"
    );
}
