//! Admission webhooks, with real servers on loopback.

use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both};
use crate::hookserver::{HookServer, allow, patch};

over_both!(
    validating_hooks_see_and_refuse,
    mutating_hooks_change_what_is_stored,
    failures_follow_the_policy,
    hooks_are_chosen,
    versions_and_subresources,
    configurations_must_fit,
);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A hook for config maps that is called for `operations`.
fn hook(name: &str, client: Value, operations: &[&str]) -> Value {
    json!({
        "name": name, "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"operations": operations, "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
    })
}

async fn configure(api: &Api, kind: &str, name: &str, hooks: Value) {
    let plural = format!("{}webhookconfigurations", kind.to_lowercase());
    let object = json!({"metadata": {"name": name}, "webhooks": hooks});
    api.ok(&format!("POST {ADMISSION}/{plural}"), object).await;
}

async fn validating_hooks_see_and_refuse(api: Api) {
    let hooks = HookServer::start(&["localhost"], |path, review| match path.split('?').next() {
        Some("/deny") if review["request"]["object"]["data"]["key"] == "bad" => json!({"response": {"allowed": false,
            "warnings": ["look out"], "status": {"code": 418, "reason": "Teapot", "message": "no bad maps",
            "details": {"causes": [{"field": "data.key", "message": "bad"}]}}}}),
        Some("/silent") if review["request"]["operation"] == "DELETE" => json!({"response": {"allowed": false}}),
        _ => allow(),
    })
    .await;
    let hook_list = json!([
        hook("deny.example.com", hooks.url("/deny"), &["CREATE", "UPDATE"]),
        hook("silent.example.com", hooks.url("/silent"), &["*"])
    ]);
    configure(&api, "Validating", "check", hook_list).await;

    let denied = api.send(&format!("POST {MAPS}?fieldManager=me"), config_map("a", "bad")).await;
    assert_eq!((denied.code, &denied.body["reason"]), (418, &json!("Teapot")), "{}", denied.text);
    assert_eq!(denied.message(), "admission webhook \"deny.example.com\" denied the request: no bad maps");
    assert_eq!(denied.body["details"]["causes"][0]["field"], "data.key");
    assert!(denied.warnings().contains(&"299 - \"look out\""));

    api.ok(&format!("POST {MAPS}?fieldManager=me"), config_map("a", "good")).await;
    let seen = hooks.questions("/deny")[1].clone();
    assert_eq!(
        (&seen["operation"], &seen["name"], &seen["namespace"], &seen["dryRun"]),
        (&json!("CREATE"), &json!("a"), &json!("default"), &json!(false))
    );
    assert_eq!(seen["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(seen["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(seen["options"]["kind"], "CreateOptions");
    assert_eq!(seen["options"]["fieldManager"], "me");
    assert_eq!((&seen["userInfo"]["username"], &seen["oldObject"]), (&json!("tester"), &Value::Null));
    // A validating hook sees the object as it will be stored.
    assert!(seen["object"]["metadata"]["uid"].is_string());
    let (path, _) = hooks.asked.lock().unwrap()[0].clone();
    assert!(path.ends_with("?timeout=10s"), "{path}");

    let update = api.send(&format!("PATCH {MAPS}/a"), json!({"data": {"key": "bad"}})).await;
    assert_eq!(update.code, 418);
    let gone = api.send(&format!("DELETE {MAPS}/a?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(gone.message(), "admission webhook \"silent.example.com\" denied the request without explanation");
    assert_eq!(gone.code, 400);
    let seen = hooks.questions("/silent").pop().unwrap();
    assert_eq!(seen["oldObject"]["data"]["key"], "good");
    assert_eq!((&seen["object"], &seen["options"]["kind"]), (&Value::Null, &json!("DeleteOptions")));
    assert_eq!(seen["options"]["gracePeriodSeconds"], 0);
    let all = api.send(&format!("DELETE {MAPS}"), Value::Null).await;
    assert_eq!(all.code, 400, "{}", all.text);
    // Connections are kept: two hooks at the same server, asked at once.
    assert!(*hooks.connections.lock().unwrap() <= 3, "{:?}", hooks.connections);
    let metrics = api.send("GET /metrics", Value::Null).await.text;
    assert!(metrics.contains("apiserver_admission_webhook_rejection_count{error_type=\"no_error\""), "{metrics}");
}

async fn mutating_hooks_change_what_is_stored(api: Api) {
    let add = |key: &str, value: &str| patch(json!([{"op": "add", "path": format!("/data/{key}"), "value": value}]));
    let hooks = HookServer::start(&["localhost"], move |path, review| match path.split('?').next() {
        Some("/first") => {
            let seen = review["request"]["object"]["data"].get("second").is_some();
            add(if seen { "again" } else { "first" }, "1")
        }
        Some("/second") => add("second", "2"),
        Some("/pod") => patch(json!([{"op": "add", "path": "/spec/initContainers", "value": [
            {"name": "init", "image": "busybox", "unknown": 1}]}])),
        _ => allow(),
    })
    .await;
    let mut first = hook("first.example.com", hooks.url("/first"), &["CREATE"]);
    first["reinvocationPolicy"] = json!("IfNeeded");
    // By the configurations' names, whatever was made first.
    let second = hook("second.example.com", hooks.url("/second"), &["CREATE"]);
    configure(&api, "Mutating", "b", json!([second])).await;
    configure(&api, "Mutating", "a", json!([first])).await;
    let made = api.ok(&format!("POST {MAPS}"), config_map("a", "x")).await;
    assert_eq!(made["data"], json!({"key": "x", "first": "1", "second": "2", "again": "1"}));
    assert_eq!((hooks.questions("/first").len(), hooks.questions("/second").len()), (2, 1));
    // A mutating hook sees a new object before the system's marks, and a name that is to be generated not at all.
    let seen = &hooks.questions("/first")[0];
    assert!(seen["object"]["metadata"].get("uid").is_none(), "{seen}");
    let mut generated = config_map("a", "x");
    generated["metadata"] = json!({"generateName": "g-"});
    let made = api.ok(&format!("POST {MAPS}"), generated).await;
    assert!(made["metadata"]["name"].as_str().unwrap().len() > 2 && made["metadata"]["uid"].is_string());
    assert_eq!(hooks.questions("/second")[1].get("name"), None);

    let mut pods = hook("pods.example.com", hooks.url("/pod"), &["CREATE"]);
    pods["rules"][0]["resources"] = json!(["pods"]);
    configure(&api, "Mutating", "c", json!([pods])).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let pod = api.ok("POST /api/v1/namespaces/default/pods", pod).await;
    let init = &pod["spec"]["initContainers"][0];
    // What the hook added has its defaults, and nothing that the schema does not know.
    assert_eq!((&init["terminationMessagePolicy"], init.get("unknown")), (&json!("File"), None));
    assert!(pod["metadata"]["managedFields"].to_string().find("initContainers").is_none());
}

async fn failures_follow_the_policy(api: Api) {
    let hooks = HookServer::start(&["localhost"], |path, _| match path.split('?').next() {
        Some("/slow") => json!({"delayMillis": 5000, "response": {"allowed": true}}),
        Some("/broken") => json!({"httpCode": 500}),
        Some("/other") => json!({"response": {"allowed": true, "uid": "another"}}),
        Some("/patched") => patch(json!([{"op": "remove", "path": "/none"}])),
        _ => allow(),
    })
    .await;
    let stranger = HookServer::start(&["elsewhere"], |_, _| allow()).await;
    let (ours, other) = (hooks.url("/ok"), stranger.url("/ok"));
    let unknown = json!({"url": other["url"], "caBundle": ours["caBundle"]});
    let dead = json!({"url": "https://127.0.0.1:1/x", "caBundle": ours["caBundle"]});
    let service = json!({"service": {"namespace": "default", "name": "none"}, "caBundle": ours["caBundle"]});
    let failing = [
        (hooks.url("/slow"), "context deadline exceeded"),
        (hooks.url("/broken"), "an error on the server (\"it broke\") has prevented the request from succeeding"),
        (hooks.url("/other"), "received invalid webhook response: expected response.uid="),
        (unknown, "tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        (other, "x509: certificate is valid for elsewhere, not localhost"),
        (dead, "dial tcp 127.0.0.1:1: connect: connection refused"),
        (service, "service \"none\" not found"),
    ];
    for (index, (client, words)) in failing.into_iter().enumerate() {
        let mut closed = hook("closed.example.com", client.clone(), &["CREATE"]);
        closed["timeoutSeconds"] = json!(1);
        let mut open = closed.clone();
        open["failurePolicy"] = json!("Ignore");
        let line = format!("{ADMISSION}/validatingwebhookconfigurations");
        configure(&api, "Validating", "failing", json!([closed])).await;
        let refused = api.send(&format!("POST {MAPS}"), config_map(&format!("m{index}"), "x")).await;
        assert_eq!((refused.code, &refused.body["reason"]), (500, &json!("InternalError")), "{}", refused.text);
        let start = "Internal error occurred: failed calling webhook \"closed.example.com\": ";
        assert!(refused.message().starts_with(start) && refused.message().contains(words), "{}", refused.message());
        api.ok(&format!("DELETE {line}/failing"), Value::Null).await;
        configure(&api, "Validating", "failing", json!([open])).await;
        api.ok(&format!("POST {MAPS}"), config_map(&format!("m{index}"), "x")).await;
        api.ok(&format!("DELETE {line}/failing"), Value::Null).await;
    }
    configure(&api, "Mutating", "patched", json!([hook("p.example.com", hooks.url("/patched"), &["CREATE"])])).await;
    let refused = api.send(&format!("POST {MAPS}"), config_map("patched", "x")).await;
    assert_eq!(refused.code, 500, "{}", refused.text);
}

async fn hooks_are_chosen(api: Api) {
    let hooks =
        HookServer::start(&["localhost", "hooks.default.svc"], |_, _| json!({"response": {"allowed": false}})).await;
    // A service by name: its certificate is checked for the service's name.
    let service = json!({"metadata": {"name": "hooks"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.ok("POST /api/v1/namespaces/default/services", service).await;
    let client = json!({"service": {"namespace": "default", "name": "hooks", "path": "/x", "port": hooks.port},
        "caBundle": hooks.url("")["caBundle"]});
    let mut chosen = hook("chosen.example.com", client, &["CREATE", "UPDATE"]);
    chosen["objectSelector"] = json!({"matchLabels": {"value": "pick"}});
    chosen["namespaceSelector"] = json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    chosen["matchConditions"] = json!([
        {"name": "not-skipped", "expression": "object.metadata.name != 'skip-me'"},
        {"name": "people", "expression": "request.userInfo.username == 'tester' && request.operation != ''"},
        {"name": "rights", "expression": "authorizer.group('').resource('pods').namespace('default').check('get').allowed()"},
    ]);
    configure(&api, "Validating", "chosen", json!([chosen])).await;
    api.ok(&format!("POST {MAPS}"), config_map("other", "x")).await;
    api.ok(&format!("POST {MAPS}"), config_map("skip-me", "pick")).await;
    let refused = api.send(&format!("POST {MAPS}"), config_map("a", "pick")).await;
    assert_eq!(refused.code, 400, "{}", refused.text);
    // Losing the label is no way past the hook.
    let relabelled = json!({"metadata": {"labels": {"value": "pick"}}});
    assert_eq!(api.send(&format!("PATCH {MAPS}/other"), relabelled).await.code, 400);
    api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "free", "labels": {"skip": "yes"}}})).await;
    let map = config_map("a", "pick");
    api.ok("POST /api/v1/namespaces/free/configmaps", map).await;
    // Not where a dry run could do harm.
    let dry = api.send(&format!("POST {MAPS}?dryRun=All"), config_map("a", "pick")).await;
    assert_eq!(dry.code, 400);
    assert_eq!(hooks.questions("/x").last().unwrap()["dryRun"], true);

    // A condition that cannot be answered is the failure policy's affair.
    let line = format!("{ADMISSION}/validatingwebhookconfigurations/chosen");
    let broken = |policy: &str| {
        let mut broken = hook("chosen.example.com", hooks.url("/x"), &["CREATE"]);
        broken["failurePolicy"] = json!(policy);
        broken["matchConditions"] = json!([{"name": "a", "expression": "object.nothing.b == 1"}]);
        json!({"webhooks": [broken]})
    };
    api.ok(&format!("PATCH {line}"), broken("Fail")).await;
    let refused = api.send(&format!("POST {MAPS}"), config_map("b", "x")).await;
    assert_eq!(
        (refused.code, refused.message()),
        (
            403,
            "configmaps \"b\" is forbidden: expression 'object.nothing.b == 1' resulted in error: no such key: nothing"
        )
    );
    api.ok(&format!("PATCH {line}"), broken("Ignore")).await;
    api.ok(&format!("POST {MAPS}"), config_map("b", "x")).await;
    // Configurations are beyond the reach of hooks.
    let everything = json!([{"name": "all.example.com", "clientConfig": hooks.url("/x"), "sideEffects": "None",
        "admissionReviewVersions": ["v1beta1"],
        "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]}]);
    configure(&api, "Validating", "everything", everything).await;
    assert_eq!(api.send(&format!("POST {MAPS}"), config_map("c", "x")).await.code, 400);
    api.ok(&format!("DELETE {ADMISSION}/validatingwebhookconfigurations/everything"), Value::Null).await;
}

async fn versions_and_subresources(api: Api) {
    let hooks = HookServer::start(&["localhost"], |path, review| match path.split('?').next() {
        Some("/scale") if review["request"]["subResource"] == "scale" => {
            patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 7}]))
        }
        Some("/deny") => json!({"response": {"allowed": false}}),
        _ => allow(),
    })
    .await;
    let mut scale = hook("scale.example.com", hooks.url("/scale"), &["*"]);
    scale["rules"][0] = json!({"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
        "resources": ["deployments/*"]});
    configure(&api, "Mutating", "scale", json!([scale])).await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    api.ok(&format!("POST {path}"), deployment).await;
    let scaled = api.ok(&format!("PATCH {path}/d/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!(scaled["spec"]["replicas"], 7);
    let seen = hooks.questions("/scale").pop().unwrap();
    assert_eq!(seen["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!((&seen["object"]["spec"]["replicas"], &seen["oldObject"]["spec"]["replicas"]), (&json!(3), &json!(1)));

    // Of another version of the same resource: the object is converted.
    let mut scaler = hook("hpa.example.com", hooks.url("/hpa"), &["CREATE"]);
    scaler["rules"][0]["apiGroups"] = json!(["autoscaling"]);
    scaler["rules"][0]["resources"] = json!(["horizontalpodautoscalers"]);
    let mut exact = scaler.clone();
    exact["name"] = json!("exact.example.com");
    exact["clientConfig"] = hooks.url("/exact");
    exact["matchPolicy"] = json!("Exact");
    configure(&api, "Validating", "hpa", json!([scaler, exact])).await;
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    api.ok("POST /apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", hpa).await;
    let seen = hooks.questions("/hpa").pop().unwrap();
    assert_eq!(seen["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
    assert_eq!((&seen["kind"]["version"], &seen["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert!(hooks.questions("/exact").is_empty());

    // Evictions and sessions are asked for with bodies of their own kind.
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    api.ok("POST /api/v1/namespaces/default/pods", pod).await;
    let mut pods = hook("pods.example.com", hooks.url("/deny"), &["CREATE", "CONNECT"]);
    pods["rules"][0]["resources"] = json!(["pods/*"]);
    configure(&api, "Validating", "pods", json!([pods])).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let refused = api.send("POST /api/v1/namespaces/default/pods/p/eviction", eviction).await;
    assert_eq!(refused.code, 400, "{}", refused.text);
    let refused = api.send("GET /api/v1/namespaces/default/pods/p/attach?stdout=1&container=c", Value::Null).await;
    assert_eq!(refused.code, 400, "{}", refused.text);
    let seen = hooks.questions("/deny").pop().unwrap();
    assert_eq!((&seen["operation"], &seen["subResource"]), (&json!("CONNECT"), &json!("attach")));
    assert_eq!(
        seen["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdout": true, "container": "c"})
    );
}

async fn configurations_must_fit(api: Api) {
    let client = json!({"url": "https://localhost/x"});
    let refused = async |change: Value| {
        let mut fine = hook("a.example.com", client.clone(), &["CREATE"]);
        for (key, value) in change.as_object().unwrap() {
            fine[key] = value.clone();
        }
        let object = json!({"metadata": {"name": "a"}, "webhooks": [fine]});
        let answer = api.send(&format!("POST {ADMISSION}/mutatingwebhookconfigurations?dryRun=All"), object).await;
        assert_eq!(answer.code, 422, "{}", answer.text);
        let cause = &answer.body["details"]["causes"][0];
        format!("{}: {}", cause["field"].as_str().unwrap(), cause["message"].as_str().unwrap())
    };
    let cases = [
        (
            json!({"matchConditions": [{"name": "bad", "expression": "... [] bad expression"}]}),
            "webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed: ERROR: <input>:1:2: Syntax error",
        ),
        (
            json!({"clientConfig": {}}),
            "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
        ),
        (
            json!({"clientConfig": {"url": "http://a/b"}}),
            "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
        ),
        (
            json!({"admissionReviewVersions": ["v7"]}),
            "webhooks[0].admissionReviewVersions: Invalid value: [\"v7\"]: must include at least one of v1, v1beta1",
        ),
        (
            json!({"name": "short"}),
            "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
        ),
        (
            json!({"rules": [{"operations": ["*", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}),
            "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
        ),
        (
            json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/*", "pods/status"]}]}),
            "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status",
        ),
    ];
    for (change, words) in cases {
        let found = refused(change).await;
        assert!(found.starts_with(words), "{found}");
    }
}
