//! Mutating admission policies. After upstream's `test/e2e/apimachinery/mutatingadmissionpolicy.go` and
//! `test/integration/apiserver/cel/mutatingadmissionpolicy_test.go`.

use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both};
use crate::hookserver::{HookServer, patch};
use crate::policies::maps;

over_both!(
    configurations_are_merged,
    patches_are_applied,
    policies_follow_one_another,
    policies_come_before_webhooks,
    params_and_variables_are_seen,
    failures_follow_the_policy,
    other_versions_and_subresources,
);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn json_patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

fn policy(name: &str, mutations: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"matchConstraints": maps(), "mutations": mutations, "reinvocationPolicy": "Never"}})
}

async fn install(api: &Api, policy: Value) {
    let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
    api.ok(&format!("POST {ADMISSION}/mutatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
    api.ok(&format!("POST {ADMISSION}/mutatingadmissionpolicybindings"), binding).await;
}

async fn remove(api: &Api, name: &str) {
    api.ok(&format!("DELETE {ADMISSION}/mutatingadmissionpolicies/{name}"), Value::Null).await;
    api.ok(&format!("DELETE {ADMISSION}/mutatingadmissionpolicybindings/{name}"), Value::Null).await;
}

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name, "annotations": {"kept": "yes"}}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

async fn configurations_are_merged(api: Api) {
    let mut policy = policy("deployments", json!([
        apply("Object{spec: Object.spec{replicas: object.spec.replicas + 1336}}"),
        apply("Object{metadata: Object.metadata{annotations: {'seen': string(object.spec.replicas)}}}"),
        apply("Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{
            containers: [Object.spec.template.spec.containers{name: 'c', env: [Object.spec.template.spec.containers.env{name: 'K', value: 'v'}]},
                         Object.spec.template.spec.containers{name: 'side', image: 's'}]}}}}"),
    ]));
    policy["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["CREATE"], "apiGroups": ["apps"],
        "apiVersions": ["v1"], "resources": ["deployments"]}]);
    install(&api, policy).await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let made = api.ok(&format!("POST {path}"), deployment("d")).await;
    assert_eq!(made["spec"]["replicas"], 1337);
    assert_eq!(made["metadata"]["annotations"], json!({"kept": "yes", "seen": "1337"}));
    let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!((&containers[0]["env"][0]["value"], &containers[0]["image"]), (&json!("v"), &json!("i")));
    // What a policy adds has its defaults.
    assert_eq!((&containers[1]["name"], &containers[1]["terminationMessagePolicy"]), (&json!("side"), &json!("File")));
    // Nobody comes to own what a policy has set.
    assert!(!made["metadata"]["managedFields"].to_string().contains("f:seen"));
    assert_eq!(api.get(&format!("{path}/d")).await["spec"]["replicas"], 1337);
    let metrics = api.send("GET /metrics", Value::Null).await.text;
    let series = "apiserver_mutating_admission_policy_check_total{error_type=\"no_error\",policy=\"deployments\",policy_binding=\"deployments\"} 3";
    assert!(metrics.contains(series), "{metrics}");
}

async fn patches_are_applied(api: Api) {
    install(&api, policy("p", json!([
        json_patch("[JSONPatch{op: 'add', path: '/data/made', value: object.metadata.name},
            JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/x'), value: 'z'}]"),
        json_patch("[JSONPatch{op: 'test', path: '/data/key', value: 'other'}, JSONPatch{op: 'remove', path: '/data/key'}]"),
        json_patch("has(object.data.copy) ? [JSONPatch{op: 'copy', from: '/data/copy', path: '/data/copied'}] : []"),
    ])))
    .await;
    let mut sent = config_map("a", "x");
    sent["data"]["copy"] = json!("c");
    let made = api.ok(&format!("POST {MAPS}"), sent).await;
    // A test that fails leaves the object as it is.
    assert_eq!(made["data"], json!({"key": "x", "copy": "c", "made": "a", "copied": "c"}));
    assert_eq!(made["metadata"]["labels"]["example.com/x"], "z");
    let updated =
        api.ok(&format!("PATCH {MAPS}/a"), json!({"data": {"made": null, "copy": null, "copied": null}})).await;
    assert_eq!(updated["data"], json!({"key": "x", "made": "a"}));
    // Whole objects as values.
    remove(&api, "p").await;
    install(&api, policy("q", json!([json_patch(
        "[JSONPatch{op: 'replace', path: '/metadata/labels', value: {'a': 'b'}}, JSONPatch{op: 'add', path: '/data', value: Object.data{key: 'y'}}]"
    )])))
    .await;
    let made = api.ok(&format!("POST {MAPS}"), config_map("b", "x")).await;
    assert_eq!((&made["data"], &made["metadata"]["labels"]), (&json!({"key": "y"}), &json!({"a": "b"})));
}

/// A policy that notes in which order the others came.
fn note(name: &str, reinvocation: &str) -> Value {
    let mut policy = policy(
        name,
        json!([json_patch(&format!(
            "[JSONPatch{{op: 'add', path: '/data/order', value: (has(object.data.order) ? object.data.order : '') + '{name}'}}]"
        ))]),
    );
    policy["spec"]["reinvocationPolicy"] = json!(reinvocation);
    policy
}

async fn policies_follow_one_another(api: Api) {
    install(&api, note("b", "Never")).await;
    install(&api, note("a", "IfNeeded")).await;
    let made = api.ok(&format!("POST {MAPS}"), config_map("m", "x")).await;
    // The first one wants to see what the second one did; that changes the object again, but there is no third round.
    assert_eq!(made["data"]["order"], "aba");
}

async fn policies_come_before_webhooks(api: Api) {
    let hooks = HookServer::start(&["localhost"], |_, review| {
        let order = review["request"]["object"]["data"]["order"].as_str().unwrap_or_default();
        patch(json!([{"op": "add", "path": "/data/order", "value": format!("{order}w")}]))
    })
    .await;
    let hook = json!({"name": "w.example.com", "clientConfig": hooks.url("/w"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let configuration = json!({"metadata": {"name": "w"}, "webhooks": [hook]});
    api.ok(&format!("POST {ADMISSION}/mutatingwebhookconfigurations"), configuration).await;
    install(&api, note("n", "Never")).await;
    install(&api, note("i", "IfNeeded")).await;
    let made = api.ok(&format!("POST {MAPS}"), config_map("m", "x")).await;
    assert_eq!(made["data"]["order"], "inwi");
    // Validating policies see what has become of it.
    let validation =
        json!([{"expression": "object.data.order == 'inwi'", "messageExpression": "string(object.data.order)"}]);
    let validating =
        json!({"metadata": {"name": "v"}, "spec": {"matchConstraints": maps(), "validations": validation}});
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicies"), validating).await;
    let binding = json!({"metadata": {"name": "v"}, "spec": {"policyName": "v", "validationActions": ["Deny"]}});
    api.ok(&format!("POST {ADMISSION}/validatingadmissionpolicybindings"), binding).await;
    api.ok(&format!("POST {MAPS}"), config_map("n", "x")).await;
}

async fn params_and_variables_are_seen(api: Api) {
    let param = |name: &str, value: &str| json!({"metadata": {"name": name, "labels": {"role": "param"}}, "data": {"name": name, "value": value}});
    for (name, value) in [("one", "1"), ("two", "2")] {
        api.ok(&format!("POST {MAPS}"), param(name, value)).await;
    }
    let mut policy = policy(
        "params",
        json!([json_patch(
            "[JSONPatch{op: 'add', path: '/data/' + params.data.name, value: variables.text + namespaceObject.metadata.name}]"
        )]),
    );
    policy["spec"]["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    policy["spec"]["variables"] = json!([{"name": "text", "expression": "params.data.value + request.operation"}]);
    policy["spec"]["matchConditions"] = json!([{"name": "c", "expression": "object.data.key != 'skip'"}]);
    api.ok(&format!("POST {ADMISSION}/mutatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "params"}, "spec": {"policyName": "params",
        "matchResources": {"objectSelector": {"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}},
        "paramRef": {"selector": {"matchLabels": {"role": "param"}}, "parameterNotFoundAction": "Deny"}}});
    api.ok(&format!("POST {ADMISSION}/mutatingadmissionpolicybindings"), binding).await;
    let made = api.ok(&format!("POST {MAPS}"), config_map("a", "x")).await;
    assert_eq!(made["data"], json!({"key": "x", "one": "1CREATEdefault", "two": "2CREATEdefault"}));
    let skipped = api.ok(&format!("POST {MAPS}"), config_map("b", "skip")).await;
    assert_eq!(skipped["data"], json!({"key": "skip"}));
}

async fn failures_follow_the_policy(api: Api) {
    let failing = [
        (
            apply("Object{data: Object.data{key: object.nothing}}"),
            "expression 'Object{data: Object.data{key: object.nothing}}' resulted in error: no such key: nothing",
        ),
        (
            apply("Object{data: Object.wrong{key: 'x'}}"),
            "type mismatch: unexpected type name \"Object.wrong\", expected \"Object.data\", which matches field name path from root Object type",
        ),
        (
            apply("Object{nothing: 1}"),
            "error applying patch: failed to convert patch object to typed object: .nothing: field not declared in schema",
        ),
        (json_patch("[JSONPatch{op: 'remove', path: '/nothing'}]"), "JSONPath: "),
    ];
    for (mutation, why) in failing {
        install(&api, policy("failing", json!([mutation]))).await;
        let refused = api.send(&format!("POST {MAPS}"), config_map("a", "x")).await;
        let start = format!("policy 'failing' with binding 'failing' denied request: {why}");
        assert!(refused.message().starts_with(&start), "{}", refused.text);
        assert_eq!((refused.code, &refused.body["reason"]), (403, &json!("Invalid")), "{}", refused.text);
        assert_eq!(refused.body["details"]["causes"][0]["message"], refused.message());
        let line = format!("PATCH {ADMISSION}/mutatingadmissionpolicies/failing");
        api.ok(&line, json!({"spec": {"failurePolicy": "Ignore"}})).await;
        let made = api.ok(&format!("POST {MAPS}"), config_map("a", "x")).await;
        assert_eq!(made["data"], json!({"key": "x"}));
        api.ok(&format!("DELETE {MAPS}/a"), Value::Null).await;
        remove(&api, "failing").await;
    }
    // Atomic things are not replaced by configurations.
    let mut atomic = policy(
        "atomic",
        json!([apply("Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}}}")]),
    );
    atomic["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["*"], "apiGroups": ["apps"],
        "apiVersions": ["v1"], "resources": ["deployments"]}]);
    install(&api, atomic).await;
    let refused = api.send("POST /apis/apps/v1/namespaces/default/deployments", deployment("d")).await;
    let why = "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector";
    assert!(refused.message().ends_with(why), "{}", refused.text);
}

async fn other_versions_and_subresources(api: Api) {
    // A policy of one version changes objects that are written in another.
    let mut scalers =
        policy("scalers", json!([apply("Object{spec: Object.spec{targetCPUUtilizationPercentage: 33}}")]));
    scalers["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["CREATE"], "apiGroups": ["autoscaling"],
        "apiVersions": ["v1"], "resources": ["horizontalpodautoscalers"]}]);
    install(&api, scalers).await;
    let scaler = json!({"metadata": {"name": "s"}, "spec": {"maxReplicas": 2,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let made = api.ok("POST /apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", scaler).await;
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 33, "{made}");
    // The scale of a deployment is a Scale.
    let mut scales = policy("scales", json!([apply("Object{spec: Object.spec{replicas: 7}}")]));
    scales["spec"]["matchConstraints"]["resourceRules"] = json!([{"operations": ["UPDATE"], "apiGroups": ["apps"],
        "apiVersions": ["v1"], "resources": ["deployments/scale"]}]);
    install(&api, scales).await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    api.ok(&format!("POST {path}"), deployment("d")).await;
    let scaled = api.ok(&format!("PATCH {path}/d/scale"), json!({"spec": {"replicas": 2}})).await;
    assert_eq!(scaled["spec"]["replicas"], 7, "{scaled}");
    assert_eq!(api.get(&format!("{path}/d")).await["spec"]["replicas"], 7);
    // A deletion is no mutating policy's business.
    api.ok(&format!("DELETE {path}/d"), Value::Null).await;
}
