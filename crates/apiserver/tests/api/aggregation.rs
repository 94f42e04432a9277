//! Groups that another API server serves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, over_both};
use crate::hookserver::HookServer;

over_both!(another_server_is_found_and_asked, local_groups_are_listed, services_must_fit);

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

fn remote(path: &str, question: &Value) -> Value {
    match path.split('?').next().unwrap() {
        "/apis/wardle.example.com/v1" => json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1",
            "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["get", "list"]}, {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]}]}),
        "/apis/wardle.example.com/v1/namespaces/default/flunders/a" => json!({"kind": "Flunder", "you": question}),
        "/openapi/v2" => json!({"paths": {"/apis/wardle.example.com/v1/flunders": {}, "/version/": {"other": true}},
            "definitions": {"com.example.wardle.Flunder": {"type": "object"}}}),
        "/openapi/v3" => {
            json!({"paths": {"apis/wardle.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1?hash=1"}}})
        }
        "/openapi/v3/apis/wardle.example.com/v1" => json!({"openapi": "3.0.0", "of": "wardle"}),
        _ => json!({"httpCode": 404, "kind": "Status"}),
    }
}

/// The condition `Available`, once it has this reason.
async fn available(api: &Api, name: &str, reason: &str) -> Value {
    let mut condition = Value::Null;
    for _ in 0..500 {
        let object = api.get(&format!("{SERVICES}/{name}")).await;
        condition = object["status"]["conditions"][0].clone();
        if condition["reason"] == reason {
            return condition;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never {reason}: {condition}");
}

async fn another_server_is_found_and_asked(api: Api) {
    let server = HookServer::start(&["wardle.default.svc"], remote).await;
    apiserver::aggregator::start(&api.server);
    let service = json!({"service": {"namespace": "default", "name": "wardle", "port": server.port}});
    let object = json!({"metadata": {"name": "v1.wardle.example.com"}, "spec": {"group": "wardle.example.com",
        "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10, "service": service["service"],
        "caBundle": server.url("")["caBundle"]}});
    api.ok(&format!("POST {SERVICES}"), object).await;
    let missing = available(&api, "v1.wardle.example.com", "ServiceNotFound").await;
    assert_eq!(missing["message"], "service/wardle in \"default\" is not present");
    let early = api.send("GET /apis/wardle.example.com/v1/namespaces/default/flunders/a", Value::Null).await;
    assert_eq!((early.code, early.text.as_str()), (503, "service unavailable\n"));

    let service =
        json!({"metadata": {"name": "wardle"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    api.ok("POST /api/v1/namespaces/default/services", service).await;
    let passed = available(&api, "v1.wardle.example.com", "Passed").await;
    assert_eq!((&passed["status"], &passed["message"]), (&json!("True"), &json!("all checks passed")));

    // Asked as the user, by nobody's claim but ours.
    let line = "GET /apis/wardle.example.com/v1/namespaces/default/flunders/a?x=y%2Fz";
    let claims = [
        ("x-remote-user", "somebody-else"),
        ("x-remote-extra-scopes", "all"),
        ("authorization", "Basic eDp5"),
        ("impersonate-user", "alice"),
        ("impersonate-group", "friends"),
        ("impersonate-extra-example.com%2Fscopes", "view"),
        ("audit-id", "one-of-mine"),
    ];
    let answer = api.with(line, &claims, Value::Null).await;
    // No certificate, no password: only who the server says that the user is.
    assert_eq!(answer.code, 403, "{}", answer.text);
    let rights = json!({"metadata": {"name": "flunders"}, "rules": [{"apiGroups": ["wardle.example.com"], "resources": ["flunders"], "verbs": ["get"]}]});
    api.ok("POST /apis/rbac.authorization.k8s.io/v1/clusterroles", rights).await;
    let binding = json!({"metadata": {"name": "flunders"}, "subjects": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "flunders", "apiGroup": "rbac.authorization.k8s.io"}});
    api.ok("POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let answer = api.with(line, &claims, Value::Null).await;
    let you = &answer.body["you"];
    assert_eq!((&you["x-remote-user"], you.get("authorization")), (&json!(["alice"]), None), "{}", answer.text);
    assert_eq!(you["x-remote-group"], json!(["friends", "system:authenticated"]));
    assert_eq!(you["audit-id"], json!(["one-of-mine"]));
    assert_eq!(you["x-remote-extra-example.com%2fscopes"], json!(["view"]));
    assert_eq!((you.get("impersonate-user"), you.get("x-remote-extra-scopes")), (None, None));
    assert!(server.asked.lock().unwrap().iter().any(|(path, _)| path.ends_with("flunders/a?x=y%2Fz")));

    // Discovery and OpenAPI are one with ours.
    let groups = api.get("/apis").await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"apps") && names.last() == Some(&"wardle.example.com"), "{names:?}");
    assert_eq!(api.get("/apis/wardle.example.com").await["preferredVersion"]["version"], "v1");
    assert_eq!(api.get("/apis/wardle.example.com/v1").await["resources"][0]["name"], "flunders");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let aggregated = api.with("GET /apis", &accept, Value::Null).await.body;
    let group = aggregated["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(group["metadata"]["name"], "wardle.example.com");
    let flunders = &group["versions"][0]["resources"][0];
    assert_eq!(
        (&flunders["scope"], &flunders["responseKind"]["group"]),
        (&json!("Namespaced"), &json!("wardle.example.com"))
    );
    assert_eq!(flunders["subresources"][0]["subresource"], "status");
    let v2 = api.get("/openapi/v2").await;
    assert!(
        v2["paths"].get("/apis/wardle.example.com/v1/flunders").is_some()
            && v2["paths"]["/version/"].get("other").is_none()
    );
    assert!(v2["definitions"].get("com.example.wardle.Flunder").is_some());
    assert!(api.get("/openapi/v3").await["paths"].get("apis/wardle.example.com/v1").is_some());
    assert_eq!(api.get("/openapi/v3/apis/wardle.example.com/v1").await["of"], "wardle");

    // A certificate that is not vouched for: the check passes, as upstream's, but nothing is passed on.
    let other = HookServer::start(&["other"], remote).await;
    let change = json!({"spec": {"caBundle": other.url("")["caBundle"]}});
    api.ok(&format!("PATCH {SERVICES}/v1.wardle.example.com"), change).await;
    let mut answer = api.send(line, Value::Null).await;
    for _ in 0..200 {
        if answer.code == 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = api.send(line, Value::Null).await;
    }
    assert!(answer.text.contains("x509: certificate signed by unknown authority"), "{}", answer.text);

    api.ok(&format!("DELETE {SERVICES}/v1.wardle.example.com"), Value::Null).await;
    for _ in 0..200 {
        if api.send("GET /apis/wardle.example.com", Value::Null).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the group stays");
}

async fn local_groups_are_listed(api: Api) {
    apiserver::serve_definitions(&api.server).await.unwrap();
    apiserver::aggregator::start(&api.server);
    for (name, managed) in [("v1.", "onstart"), ("v1.apps", "onstart"), ("v2.autoscaling", "onstart")] {
        let mut answer = api.send(&format!("GET {SERVICES}/{name}"), Value::Null).await;
        for _ in 0..200 {
            if answer.code == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = api.send(&format!("GET {SERVICES}/{name}"), Value::Null).await;
        }
        let condition = &answer.body["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Local")), "{}", answer.text);
        let labels = &answer.body["metadata"]["labels"];
        assert_eq!(labels["kube-aggregator.kubernetes.io/automanaged"], managed);
    }
    assert_eq!(api.get(&format!("{SERVICES}/v1.")).await["spec"]["groupPriorityMinimum"], 18000);
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let definition = json!({"metadata": {"name": "gears.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "gears", "kind": "Gear"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.ok(&format!("POST {definitions}"), definition).await;
    let code = async |wanted: u16| {
        for _ in 0..500 {
            if api.send(&format!("GET {SERVICES}/v1.example.com"), Value::Null).await.code == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {wanted}");
    };
    code(200).await;
    assert_eq!(api.get(&format!("{SERVICES}/v1.example.com")).await["spec"]["versionPriority"], 100);
    api.ok(&format!("DELETE {definitions}/gears.example.com"), Value::Null).await;
    code(404).await;
}

async fn services_must_fit(api: Api) {
    let refused = async |name: &str, spec: Value| {
        let answer = api.send(&format!("POST {SERVICES}"), json!({"metadata": {"name": name}, "spec": spec})).await;
        assert_eq!(answer.code, 422, "{}", answer.text);
        let cause = &answer.body["details"]["causes"][0];
        format!("{}: {}", cause["field"].as_str().unwrap(), cause["message"].as_str().unwrap())
    };
    let spec = |change: Value| {
        let mut spec = json!({"group": "a.b", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec
    };
    assert_eq!(
        refused("v1.c", spec(json!({}))).await,
        "metadata.name: Invalid value: \"v1.c\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\""
    );
    assert_eq!(
        refused("v1.a.b", spec(json!({"insecureSkipTLSVerify": true}))).await,
        "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify"
    );
    let service =
        json!({"service": {"namespace": "a", "name": "b"}, "caBundle": "YQ==", "insecureSkipTLSVerify": true});
    assert_eq!(
        refused("v1.a.b", spec(service)).await,
        "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"
    );
    assert!(refused("v1.a.b", spec(json!({"versionPriority": 0}))).await.starts_with("spec.versionPriority: "));
}
