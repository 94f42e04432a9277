use serde_json::json;

use super::*;

fn shown(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
}

fn pod(spec: Value) -> Value {
    json!({ "metadata": { "name": "p" }, "spec": spec })
}

fn used(group: &str, plural: &str, object: &Value) -> String {
    shown(&usage(group, plural, object, 0))
}

fn container(name: &str, requests: Value, limits: Value) -> Value {
    json!({ "name": name, "resources": { "requests": requests, "limits": limits } })
}

#[test]
fn a_pod_uses_what_its_worst_moment_asks_for() {
    let mut sidecar = container("side", json!({ "cpu": "100m" }), json!({}));
    sidecar["restartPolicy"] = json!("Always");
    let pod = pod(json!({
        "containers": [
            container("a", json!({ "cpu": "500m", "example.com/dongle": "2", "hugepages-2Mi": "4Mi" }), json!({ "memory": "1Gi" })),
            container("b", json!({ "cpu": "250m", "memory": "64Mi" }), json!({})),
        ],
        "initContainers": [sidecar, container("init", json!({ "cpu": "2" }), json!({}))],
        "overhead": { "cpu": "10m", "memory": "1Mi" },
    }));
    assert_eq!(
        used("", "pods", &pod),
        "count/pods=1 cpu=2110m hugepages-2Mi=4Mi limits.memory=1025Mi memory=65Mi pods=1 requests.cpu=2110m \
         requests.example.com/dongle=2 requests.hugepages-2Mi=4Mi requests.memory=65Mi"
    );
}

#[test]
fn a_pod_that_is_over_is_only_there() {
    let mut pod = pod(json!({ "containers": [container("a", json!({ "cpu": "1" }), json!({}))] }));
    pod["status"] = json!({ "phase": "Succeeded" });
    assert_eq!(used("", "pods", &pod), "count/pods=1");
    pod["status"] = json!({ "phase": "Running" });
    pod["metadata"] = json!({ "deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30 });
    assert_eq!(shown(&usage("", "pods", &pod, 90)), "count/pods=1 cpu=1 pods=1 requests.cpu=1");
    assert_eq!(shown(&usage("", "pods", &pod, 91)), "count/pods=1", "its node may be lost");
}

#[test]
fn a_pod_pays_for_what_a_resize_has_not_given_back() {
    let mut pod = pod(json!({ "containers": [container("a", json!({ "cpu": "1" }), json!({ "cpu": "1" }))] }));
    pod["status"] = json!({ "containerStatuses": [{
        "name": "a", "resources": { "requests": { "cpu": "2" }, "limits": { "cpu": "3" } }, "allocatedResources": { "cpu": "2" },
    }] });
    assert_eq!(used("", "pods", &pod), "count/pods=1 cpu=2 limits.cpu=3 pods=1 requests.cpu=2");
    let whole = json!({ "resources": { "requests": { "cpu": "4" } }, "containers": [container("a", json!({ "cpu": "1" }), json!({}))] });
    assert_eq!(used("", "pods", &json!({ "spec": whole })), "count/pods=1 cpu=4 pods=1 requests.cpu=4");
}

#[test]
fn services_use_the_ports_they_ask_for() {
    let service = |kind: &str, allocate: Value| {
        let ports = json!([{ "port": 1 }, { "port": 2, "nodePort": 30002 }]);
        let spec = json!({ "type": kind, "ports": ports, "allocateLoadBalancerNodePorts": allocate });
        let all = usage("", "services", &json!({ "spec": spec }), 0);
        format!("{} {} {}", all["services"], all["services.nodeports"], all["services.loadbalancers"])
    };
    assert_eq!(service("ClusterIP", Value::Null), "1 0 0");
    assert_eq!(service("NodePort", Value::Null), "1 2 0");
    assert_eq!(service("LoadBalancer", Value::Null), "1 2 1");
    assert_eq!(service("LoadBalancer", json!(false)), "1 1 1");
}

#[test]
fn volume_claims_use_storage_of_their_class() {
    let claim = json!({
        "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "1Gi" } } },
        "status": { "allocatedResources": { "storage": "2Gi" } },
    });
    assert_eq!(
        used("", "persistentvolumeclaims", &claim),
        "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
         gold.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi"
    );
    let fraction = json!({ "spec": { "resources": { "requests": { "storage": "1500m" } } } });
    assert!(used("", "persistentvolumeclaims", &fraction).ends_with("requests.storage=2"));
}

#[test]
fn device_claims_use_the_most_that_a_choice_asks_for() {
    let claim = json!({ "spec": { "devices": { "requests": [
        { "name": "a", "exactly": { "deviceClassName": "gold", "count": 2 } },
        { "name": "b", "firstAvailable": [{ "deviceClassName": "gold", "count": 3 }, { "deviceClassName": "gold" }, { "deviceClassName": "iron", "allocationMode": "All" }] },
    ] } } });
    assert_eq!(
        used("resource.k8s.io", "resourceclaims", &claim),
        "count/resourceclaims.resource.k8s.io=1 gold.deviceclass.resource.k8s.io/devices=5 \
         iron.deviceclass.resource.k8s.io/devices=32"
    );
}

#[test]
fn each_name_is_of_one_kind() {
    for (name, expected) in [
        ("pods", Some(("", "pods"))),
        ("requests.cpu", Some(("", "pods"))),
        ("limits.ephemeral-storage", Some(("", "pods"))),
        ("requests.example.com/dongle", Some(("", "pods"))),
        ("requests.hugepages-1Gi", Some(("", "pods"))),
        ("requests.storage", Some(("", "persistentvolumeclaims"))),
        ("gold.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
        ("services.nodeports", Some(("", "services"))),
        ("secrets", Some(("", "secrets"))),
        ("count/secrets", Some(("", "secrets"))),
        ("count/deployments.apps", Some(("apps", "deployments"))),
        ("count/widgets.shop.example.com", Some(("shop.example.com", "widgets"))),
        ("gold.deviceclass.resource.k8s.io/devices", Some(("resource.k8s.io", "resourceclaims"))),
        ("count/events", None),
        ("example.com/dongle", None),
        ("limits.example.com/dongle", None),
    ] {
        assert_eq!(kind_of(name), expected, "{name}");
        if let Some((group, plural)) = expected {
            assert!(concerns(group, plural, name), "{name}");
        }
    }
}

fn quota(spec: Value, status: Value) -> Value {
    json!({ "metadata": { "name": "q" }, "spec": spec, "status": status })
}

#[test]
fn scopes_choose_pods() {
    let in_scope = |spec: Value, pod_spec: Value| in_scope("", "pods", &quota(spec, json!({})), &pod(pod_spec));
    let busy = json!({ "containers": [container("a", json!({ "cpu": "1" }), json!({}))] });
    let idle = json!({ "containers": [{ "name": "a" }], "activeDeadlineSeconds": 5, "priorityClassName": "high" });
    for (scope, of_busy) in [
        ("BestEffort", false),
        ("NotBestEffort", true),
        ("Terminating", false),
        ("NotTerminating", true),
        ("PriorityClass", false),
    ] {
        assert_eq!(in_scope(json!({ "scopes": [scope] }), busy.clone()), of_busy, "{scope}");
        assert_eq!(in_scope(json!({ "scopes": [scope] }), idle.clone()), !of_busy, "{scope}");
    }
    let class = |operator: &str, values: Value| json!({ "scopeSelector": { "matchExpressions": [{ "scopeName": "PriorityClass", "operator": operator, "values": values }] } });
    assert!(in_scope(class("In", json!(["high", "low"])), idle.clone()));
    assert!(!in_scope(class("In", json!(["low"])), idle.clone()));
    assert!(!in_scope(class("NotIn", json!(["high"])), idle.clone()));
    assert!(in_scope(class("NotIn", json!(["high"])), busy.clone()));
    assert!(in_scope(class("DoesNotExist", Value::Null), busy.clone()));
    let term = |term: Value| json!({ "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": term }] } } });
    let crossing = json!({ "scopes": ["CrossNamespacePodAffinity"] });
    assert!(in_scope(crossing.clone(), term(json!({ "namespaceSelector": {} }))));
    assert!(!in_scope(crossing, term(json!({ "topologyKey": "x" }))));
}

#[test]
fn scoped_quotas_are_about_pods_and_classes_of_claims() {
    let scoped = quota(json!({ "scopes": ["NotTerminating"], "hard": { "secrets": "1" } }), json!({}));
    assert!(!in_scope("", "secrets", &scoped, &json!({})));
    let class = json!({ "scopeSelector": { "matchExpressions": [{ "scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"] }] } });
    let of = |claim: Value| in_scope("", "persistentvolumeclaims", &quota(class.clone(), json!({})), &claim);
    assert!(of(json!({ "spec": { "volumeAttributesClassName": "gold" } })));
    assert!(of(
        json!({ "spec": { "volumeAttributesClassName": "silver" }, "status": { "currentVolumeAttributesClassName": "gold" } })
    ));
    assert!(!of(json!({ "spec": {} })));
}

fn charged(quota: &Value, plural: &str, object: &Value, old: Option<&Value>) -> String {
    let write = Write { group: "", plural, subresource: "", object, old, now: 0 };
    match charge(std::slice::from_ref(quota), &write) {
        Ok(charges) => match &charges[0] {
            Charge::Nothing => "nothing".to_owned(),
            Charge::Recount => "recount".to_owned(),
            Charge::Used(used) => shown(used),
        },
        Err(why) => why,
    }
}

#[test]
fn a_create_is_charged_or_refused_in_upstreams_words() {
    let limits = json!({ "pods": "5", "requests.cpu": "1" });
    let with = |used: Value| quota(json!({ "hard": limits }), json!({ "hard": limits, "used": used }));
    let half = pod(json!({ "containers": [container("c", json!({ "cpu": "500m" }), json!({}))] }));
    let some = with(json!({ "pods": "4", "requests.cpu": "500m" }));
    assert_eq!(charged(&some, "pods", &half, None), "pods=5 requests.cpu=1");
    let full = with(json!({ "pods": "5", "requests.cpu": "600m" }));
    assert_eq!(
        charged(&full, "pods", &half, None),
        "exceeded quota: q, requested: pods=1,requests.cpu=500m, used: pods=5,requests.cpu=600m, limited: pods=5,requests.cpu=1"
    );
    let open = pod(json!({ "containers": [{ "name": "d" }, { "name": "c" }] }));
    assert_eq!(charged(&some, "pods", &open, None), "failed quota: q: must specify requests.cpu for: c,d");
    assert_eq!(
        charged(&with(json!({ "pods": "4" })), "pods", &half, None),
        "status unknown for quota: q, resources: pods,requests.cpu"
    );
    let negative = pod(json!({ "containers": [container("c", json!({ "cpu": "-1" }), json!({}))] }));
    assert_eq!(charged(&some, "pods", &negative, None), "quota usage is negative for resource(s): cpu,requests.cpu");
    assert_eq!(charged(&some, "configmaps", &json!({}), None), "nothing");
    assert_eq!(charged(&some, "events", &json!({}), None), "nothing");
}

#[test]
fn a_quota_that_was_never_counted_is_counted_anew() {
    let fresh = quota(json!({ "hard": { "secrets": "1" } }), json!({}));
    assert_eq!(charged(&fresh, "secrets", &json!({}), None), "recount");
    assert_eq!(charged(&fresh, "configmaps", &json!({}), None), "nothing");
}

#[test]
fn an_update_is_charged_for_what_it_adds() {
    let limits = json!({ "services": "1", "services.nodeports": "2" });
    let quota = quota(
        json!({ "hard": limits }),
        json!({ "hard": limits, "used": { "services": "1", "services.nodeports": "1" } }),
    );
    let service =
        |kind: &str, ports: usize| json!({ "spec": { "type": kind, "ports": vec![json!({ "port": 1 }); ports] } });
    let old = service("NodePort", 1);
    assert_eq!(charged(&quota, "services", &service("NodePort", 2), Some(&old)), "services=1 services.nodeports=2");
    assert_eq!(
        charged(&quota, "services", &service("ClusterIP", 1), Some(&old)),
        "nothing",
        "the controller gives back"
    );
    assert_eq!(
        charged(&quota, "services", &service("NodePort", 3), Some(&old)),
        "exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=1, limited: services.nodeports=2"
    );
    assert_eq!(charged(&quota, "secrets", &json!({}), Some(&json!({}))), "nothing");
}

#[test]
fn a_pod_that_gets_a_deadline_changes_its_quota() {
    let limits = json!({ "pods": "1" });
    let of = |scope: &str, used: &str| {
        quota(json!({ "hard": limits, "scopes": [scope] }), json!({ "hard": limits, "used": { "pods": used } }))
    };
    let (old, new) = (pod(json!({})), pod(json!({ "activeDeadlineSeconds": 5 })));
    assert_eq!(charged(&of("Terminating", "0"), "pods", &new, Some(&old)), "pods=1");
    assert_eq!(charged(&of("NotTerminating", "1"), "pods", &new, Some(&old)), "nothing");
    assert_eq!(charged(&of("Terminating", "0"), "pods", &old, Some(&old)), "nothing");
}

#[test]
fn a_total_has_a_zero_for_what_nobody_uses() {
    let quota =
        quota(json!({ "hard": { "pods": "9", "requests.cpu": "9", "limits.cpu": "9", "secrets": "1" } }), json!({}));
    let pods = [
        pod(json!({ "containers": [container("a", json!({ "cpu": "250m" }), json!({}))] })),
        pod(json!({ "containers": [container("a", json!({ "cpu": "750m" }), json!({}))] })),
    ];
    assert_eq!(shown(&total("", "pods", &quota, pods.iter(), 0)), "limits.cpu=0 pods=2 requests.cpu=1");
}
