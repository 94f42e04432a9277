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

#[test]
fn small_objects_whose_fields_depend_on_each_other() {
    let found = pod(json!({
        "containers": [{
            "name": "a", "image": "x",
            "env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "B", "valueFrom": {}}],
            "livenessProbe": {"successThreshold": 2},
            "readinessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}},
            "resources": {"requests": {"cpu": "2", "memory": "1Gi", "example.com/gpu": "1"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        }],
        "tolerations": [{"value": "x"}, {"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}],
        "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Gt", "values": ["1", "2"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}, {"key": "x", "operator": "Exists"}]},
        ]}}},
    }));
    let terms = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    assert_eq!(
        found,
        [
            format!("{terms}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"),
            format!("{terms}[0].matchExpressions[1].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"),
            format!("{terms}[1].matchFields[1].operator: Invalid value: \"Exists\": not a valid selector operator"),
            format!("{terms}[1].matchFields[1].key: Invalid value: \"x\": not a valid field selector key"),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty".into(),
            "spec.containers[0].env[1].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, \
             `configMapKeyRef` or `secretKeyRef`".into(),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type".into(),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1".into(),
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type".into(),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1".into(),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources".into(),
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, \
             which means \"match all values and all keys\"".into(),
            "spec.tolerations[1].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set".into(),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type".to_owned(),
        ]
    );
    assert_eq!(
        errors(
            ("networking.k8s.io", "v1", "Ingress"),
            json!({"spec": {"defaultBackend": {}, "rules": [{"http": {"paths": [
                {"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {}}}},
            ]}}]}})
        ),
        [
            "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
            "spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
        ]
    );
    assert_eq!(
        errors(("rbac.authorization.k8s.io", "v1", "Role"), json!({"rules": [{"verbs": ["get"], "apiGroups": [""]}]})),
        ["rules[0].resources: Required value: resource rules must supply at least one resource"]
    );
}
