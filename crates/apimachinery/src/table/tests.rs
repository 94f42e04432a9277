//! Objects in, rows out.

use serde_json::json;

use super::*;

/// 2026-01-02T00:00:00Z
const NOW: i64 = 1_767_312_000;

fn cells(group: &str, kind: &str, object: Value) -> String {
    let c = Cells { object: &object, now: NOW };
    let cells = (built_in(group, kind).cells)(&c);
    let texts: Vec<String> = cells.iter().map(cell::plain).collect();
    texts.join(" | ")
}

fn pod(spec: Value, status: Value) -> String {
    cells(
        "",
        "Pod",
        json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T23:59:30Z"}, "spec": spec, "status": status}),
    )
}

#[test]
fn every_row_fits_its_columns() {
    let areas = [workloads::KINDS, network::KINDS, storage::KINDS, access::KINDS, system::KINDS, &[DEFAULT]];
    for kind in areas.into_iter().flatten() {
        let name = kind.kind;
        for object in [json!({}), json!({"spec": [], "status": {"conditions": {}}, "metadata": "x"}), Value::Null] {
            let cells = (kind.cells)(&Cells { object: &object, now: NOW });
            assert_eq!(cells.len(), kind.columns.len(), "{name}");
        }
        assert!(kind.columns.iter().any(|column| column.0 == "Name"), "{name}");
    }
}

#[test]
fn kinds_with_columns_are_served() {
    let table = crate::resource::builtin();
    for row in table.rows() {
        let printer = Printer::new(row);
        assert_eq!(printer.columns().len(), printer.cells(&json!({}), NOW).len(), "{}", row.kind);
    }
    for kind in [workloads::KINDS, network::KINDS, storage::KINDS, access::KINDS, system::KINDS].into_iter().flatten() {
        let served = table.rows().any(|row| *row.kind == *kind.kind && *row.group == *kind.group);
        assert!(served || kind.kind == "Scale", "{}", kind.kind);
    }
}

#[test]
fn pods() {
    let containers = json!([{"name": "a"}, {"name": "b"}]);
    let running = |name: &str| json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}});
    assert_eq!(
        pod(
            json!({"containers": containers, "nodeName": "n1"}),
            json!({
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [running("a"), running("b")],
            })
        ),
        "p | 2/2 | Running | 0 | 30s | 10.0.0.1 | n1 | <none> | <none>"
    );
    assert_eq!(
        pod(
            json!({"containers": containers, "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]}),
            json!({
                "phase": "Running", "nominatedNodeName": "n2",
                "conditions": [{"type": "x", "status": "True"}, {"type": "y", "status": "False"}],
                "containerStatuses": [running("a"), {
                    "name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T23:59:55Z"}},
                }],
            })
        ),
        "p | 1/2 | CrashLoopBackOff | 3 (5s ago) | 30s | <none> | <none> | n2 | 1/2"
    );
    assert_eq!(
        pod(json!({"containers": [{}]}), json!({"phase": "Pending"})),
        "p | 0/1 | Pending | 0 | 30s | <none> | <none> | <none> | <none>"
    );
}

#[test]
fn pod_states() {
    let state =
        |spec: Value, status: Value| pod(spec, status).split(" | ").skip(1).take(3).collect::<Vec<_>>().join(" ");
    let one = json!({"containers": [{"name": "a"}]});
    let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    let ended = |fields: Value| json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": fields}}]});
    assert_eq!(state(one.clone(), ended(json!({"reason": "Completed"}))), "0/1 Completed 0");
    assert_eq!(state(one.clone(), ended(json!({"exitCode": 3}))), "0/1 ExitCode:3 0");
    assert_eq!(state(one.clone(), ended(json!({"signal": 9}))), "0/1 Signal:9 0");
    assert_eq!(state(one.clone(), json!({"phase": "Failed", "reason": "Evicted"})), "0/1 Evicted 0");
    let gated = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]});
    assert_eq!(state(one, gated), "0/1 SchedulingGated 0");
    let first = |i: Value| json!({"phase": "Pending", "initContainerStatuses": [i]});
    assert_eq!(state(init.clone(), first(json!({"name": "i", "state": {"running": {}}}))), "0/2 Init:0/2 0");
    assert_eq!(
        state(
            init.clone(),
            first(json!({"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}))
        ),
        "0/2 Init:CrashLoopBackOff 2"
    );
    assert_eq!(
        state(init.clone(), first(json!({"name": "i", "state": {"terminated": {"exitCode": 1}}}))),
        "0/2 Init:ExitCode:1 0"
    );
    assert_eq!(
        state(init.clone(), first(json!({"name": "i", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}))),
        "0/2 Init:Error 0"
    );
    let sidecar = json!({
        "phase": "Running",
        "initContainerStatuses": [
            {"name": "i", "restartCount": 4, "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "restartCount": 1, "started": true, "ready": true, "state": {"running": {}}},
        ],
        "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}],
    });
    assert_eq!(state(init, sidecar), "2/2 Running 1");
}

#[test]
fn dying_pods() {
    let object = |phase: &str, reason: &str| {
        json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase, "reason": reason},
        })
    };
    let status =
        |phase: &str, reason: &str| cells("", "Pod", object(phase, reason)).split(" | ").nth(2).unwrap().to_owned();
    assert_eq!(status("Running", ""), "Terminating");
    assert_eq!(status("Succeeded", ""), "Succeeded");
    assert_eq!(status("Running", "NodeLost"), "Unknown");
}

#[test]
fn workloads_and_services() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}]}});
    assert_eq!(
        cells(
            "apps",
            "Deployment",
            json!({
                "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template},
                "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1},
            })
        ),
        "web | 2/3 | 3 | 1 | 24h | a,b | x:1,y:2 | app=web"
    );
    assert_eq!(
        cells(
            "batch",
            "Job",
            json!({
                "metadata": {"name": "j"}, "spec": {"completions": 1, "selector": {}},
                "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:05Z",
                    "conditions": [{"type": "Complete", "status": "True"}]},
            })
        ),
        "j | Complete | 1/1 | 65s | <unknown> |  |  | <none>"
    );
    assert_eq!(
        cells(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({
                "metadata": {"name": "h"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 5, "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}},
                    {"type": "External", "external": {"target": {"averageValue": "1000m"}}},
                    {"type": "Pods"},
                ]},
                "status": {"currentReplicas": 2, "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 10}}}]},
            })
        ),
        "h | Deployment/web | cpu: 10%/50%, <unknown>/1 (avg) + 1 more... | <unset> | 5 | 2 | <unknown>"
    );
    let service = |spec: Value, status: Value| {
        cells("", "Service", json!({"metadata": {"name": "s"}, "spec": spec, "status": status}))
    };
    assert_eq!(
        service(
            json!({"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"a": "b"}, "ports": [
                {"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"},
            ]}),
            json!({})
        ),
        "s | NodePort | 10.0.0.1 | <none> | 80:30080/TCP,53/UDP | <unknown> | a=b"
    );
    assert_eq!(
        service(json!({"type": "LoadBalancer"}), json!({})),
        "s | LoadBalancer | <none> | <pending> | <none> | <unknown> | <none>"
    );
    assert_eq!(
        cells(
            "",
            "Endpoints",
            json!({"metadata": {"name": "e"}, "subsets": [
                {"addresses": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}], "ports": [{"port": 80}, {"port": 81}]},
                {"addresses": [{"ip": "fe80::1"}], "ports": [{"port": 80}]},
            ]})
        ),
        "e | 1.1.1.1:80,2.2.2.2:80,1.1.1.1:81 + 2 more... | <unknown>"
    );
}

#[test]
fn cluster_and_storage() {
    assert_eq!(
        cells(
            "",
            "Node",
            json!({
                "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "x"}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                    "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"}},
            })
        ),
        "n | Ready,SchedulingDisabled | control-plane,x | <unknown> | v1.37.0 | 1.2.3.4 | <none> | Debian | <unknown> | <unknown>"
    );
    for object in [
        json!({"metadata": {"name": "e.1"}, "type": "Warning", "reason": "Failed", "message": " boom ", "count": 2,
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "2026-01-01T23:00:00Z", "lastTimestamp": "2026-01-01T23:59:00Z"}),
        json!({"metadata": {"name": "e.1"}, "type": "Warning", "reason": "Failed", "note": "boom", "deprecatedCount": 2,
            "regarding": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "reportingController": "kubelet", "reportingInstance": "n",
            "deprecatedFirstTimestamp": "2026-01-01T23:00:00Z", "deprecatedLastTimestamp": "2026-01-01T23:59:00Z"}),
    ] {
        assert_eq!(
            cells("", "Event", object),
            "60s | Warning | Failed | pod/p | spec | kubelet, n | boom | 60m | 2 | e.1"
        );
    }
    assert_eq!(
        cells(
            "",
            "PersistentVolumeClaim",
            json!({
                "metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "fast"},
                "status": {"phase": "Bound", "capacity": {"storage": "1024Mi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]},
            })
        ),
        "c | Bound | v | 1Gi | RWO,RWX | fast | <unset> | <unknown> | <unset>"
    );
    assert_eq!(
        cells(
            "",
            "ResourceQuota",
            json!({"metadata": {"name": "q"}, "status": {
                "hard": {"cpu": "2", "limits.cpu": "4", "pods": "10"}, "used": {"cpu": "500m", "pods": "1"},
            }})
        ),
        "q | cpu: 500m/2, pods: 1/10 | limits.cpu: 0/4 | <unknown>"
    );
    assert_eq!(
        cells(
            "rbac.authorization.k8s.io",
            "RoleBinding",
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "sa", "namespace": "ns"}, {"kind": "User", "name": "v"}]})
        ),
        "b | Role/r | <unknown> | u, v |  | ns/sa"
    );
    assert_eq!(
        cells(
            "rbac.authorization.k8s.io",
            "Role",
            json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"}})
        ),
        "r | 2026-01-01T00:00:00Z"
    );
}

#[test]
fn custom_resources() {
    let table = crate::resource::builtin();
    let mut row = (**table.rows().next().unwrap()).clone();
    row.custom = true;
    let define = |name: &str, kind: &str, path: &str| Column {
        name: name.into(),
        kind: kind.into(),
        format: "".into(),
        description: "".into(),
        priority: 0,
        path: path.into(),
    };
    row.columns = vec![
        define("S", "string", ".spec.s"),
        define("Map", "string", ".spec.m"),
        define("I", "integer", ".spec.n"),
        define("N", "number", ".spec.n"),
        define("B", "boolean", ".spec.b"),
        define("D", "date", ".metadata.creationTimestamp"),
        define("Bad", "date", ".spec.s"),
        define("None", "string", ".spec.none"),
        define("Wrong", "integer", ".spec.s"),
        define("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
    ];
    let object = json!({
        "metadata": {"name": "c", "creationTimestamp": "2026-01-01T23:59:00Z"},
        "spec": {"s": "x", "m": {"k": 1}, "n": 3, "b": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    assert_eq!(
        Value::Array(super::row(&row, &object, NOW)),
        json!(["c", "x", "{\"k\":1}", 3, 3, true, "60s", "<invalid>", null, null, "True"])
    );
    assert_eq!(columns(&row)[0].format.as_ref(), "name");
    row.columns.clear();
    assert_eq!(Value::Array(super::row(&row, &object, NOW)), json!(["c", "60s"]));
    assert_eq!(columns(&row).iter().map(|c| c.name.to_string()).collect::<Vec<_>>(), ["Name", "Age"]);
}
