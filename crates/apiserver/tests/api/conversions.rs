//! Custom resources in versions that a webhook converts between.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::harness::{Api, over_both};
use crate::hookserver::HookServer;

over_both!(versions_are_converted, conversions_that_fail);

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "/apis/stable.example.com";

/// `v1` has `hostPort`, `v2` has `host` and `port`.
fn definition(client: Value) -> Value {
    let version = |name: &str, fields: Value, selectable: &str| {
        json!({"name": name, "served": true, "storage": name == "v1", "selectableFields": [{"jsonPath": selectable}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": fields}}})
    };
    let text = json!({"type": "string"});
    json!({"metadata": {"name": "hosts.stable.example.com"}, "spec": {
        "group": "stable.example.com", "scope": "Namespaced", "names": {"plural": "hosts", "kind": "Host"},
        "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}},
        "versions": [version("v1", json!({"hostPort": text}), ".hostPort"),
            version("v2", json!({"host": text, "port": text}), ".host")]}})
}

fn converted(object: &Value, to: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = json!(to);
    out["unknown"] = json!("is pruned");
    out["metadata"]["labels"]["seen"] = json!("yes");
    // Whatever else it does to metadata is not heard.
    out["metadata"]["generation"] = json!(77);
    let map = out.as_object_mut().unwrap();
    if to.ends_with("v2") {
        let text = map.remove("hostPort").unwrap();
        let (host, port) = text.as_str().unwrap().split_once(':').unwrap();
        map.insert("host".to_owned(), json!(host));
        map.insert("port".to_owned(), json!(port));
    } else {
        let text = format!("{}:{}", map["host"].as_str().unwrap(), map["port"].as_str().unwrap());
        map.retain(|key, _| !matches!(key.as_str(), "host" | "port"));
        map.insert("hostPort".to_owned(), json!(text));
    }
    out
}

fn answer(review: &Value) -> Value {
    let to = review["request"]["desiredAPIVersion"].as_str().unwrap();
    let objects: Vec<Value> =
        review["request"]["objects"].as_array().unwrap().iter().map(|object| converted(object, to)).collect();
    json!({"response": {"result": {"status": "Success"}, "convertedObjects": objects}})
}

async fn serve(api: &Api, client: Value) {
    apiserver::serve_definitions(&api.server).await.unwrap();
    api.ok(&format!("POST {DEFINITIONS}"), definition(client)).await;
    for _ in 0..500 {
        if api.send(&format!("GET {GROUP}/v2/hosts"), Value::Null).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the definition is not served");
}

async fn versions_are_converted(api: Api) {
    let hooks = HookServer::start(&["localhost"], |_, review| answer(review)).await;
    serve(&api, hooks.url("/convert")).await;
    let (v1, v2) = (format!("{GROUP}/v1/namespaces/default/hosts"), format!("{GROUP}/v2/namespaces/default/hosts"));
    api.ok(
        &format!("POST {v1}"),
        json!({"apiVersion": "stable.example.com/v1", "kind": "Host",
        "metadata": {"name": "a"}, "hostPort": "one:1"}),
    )
    .await;
    assert!(hooks.asked.lock().unwrap().is_empty(), "nothing to convert");
    let made = api
        .ok(
            &format!("POST {v2}"),
            json!({"apiVersion": "stable.example.com/v2", "kind": "Host",
        "metadata": {"name": "b"}, "host": "two", "port": "2"}),
        )
        .await;
    assert_eq!((&made["host"], &made["port"], made.get("unknown")), (&json!("two"), &json!("2"), None));
    assert_eq!((&made["metadata"]["generation"], &made["metadata"]["labels"]["seen"]), (&json!(1), &json!("yes")));
    assert_eq!(api.get(&format!("{v1}/b")).await["hostPort"], "two:2");
    assert_eq!(api.get(&format!("{v2}/a")).await["host"], "one");

    // A list is one question.
    let before = hooks.asked.lock().unwrap().len();
    let list = api.get(&v2).await;
    assert_eq!(list["items"].as_array().unwrap().iter().map(|i| i["host"].clone()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(list["items"][0]["apiVersion"], "stable.example.com/v2");
    assert_eq!(hooks.asked.lock().unwrap().len(), before + 1);
    // Selectors speak of the version that is asked for.
    let chosen = api.get(&format!("{v2}?fieldSelector=host%3Dtwo")).await;
    assert_eq!(chosen["items"][0]["metadata"]["name"], "b");
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1);
    let none = api.ok(&format!("DELETE {v2}?fieldSelector=host%3Dnobody"), Value::Null).await;
    assert_eq!(none["items"], json!([]));
    let chosen = api.ok(&format!("DELETE {v2}?fieldSelector=host%3Dtwo&dryRun=All"), Value::Null).await;
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1);
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = api.with(&format!("GET {v2}"), &accept, Value::Null).await;
    assert_eq!(table.body["rows"].as_array().unwrap().len(), 2);

    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let watch =
        api.open(&format!("GET {v2}?watch=1&resourceVersion={version}&timeoutSeconds=1"), &[], String::new()).await;
    let patched = api.ok(&format!("PATCH {v1}/a"), json!({"hostPort": "changed:9"})).await;
    assert_eq!(patched["metadata"]["generation"], 2);
    api.ok(&format!("PATCH {v2}/b"), json!({"port": "3"})).await;
    api.ok(&format!("DELETE {v2}/b"), Value::Null).await;
    let text = watch.into_body().collect().await.unwrap().to_bytes();
    let events: Vec<Value> =
        String::from_utf8_lossy(&text).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<String> = events
        .iter()
        .map(|e| {
            format!(
                "{} {}:{}",
                e["type"].as_str().unwrap(),
                e["object"]["host"].as_str().unwrap(),
                e["object"]["port"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(told, ["MODIFIED changed:9", "MODIFIED two:3", "DELETED two:3"]);
    assert_eq!(events[0]["object"]["metadata"]["resourceVersion"], patched["metadata"]["resourceVersion"]);
    // The owner wrote in the other version, and in its words the port is a part of a field of theirs.
    let config = json!({"apiVersion": "stable.example.com/v2", "kind": "Host", "port": "10"});
    let conflict = api.apply(&format!("{v2}/a"), "me", config.clone()).await;
    assert_eq!(conflict.code, 409, "{}", conflict.text);
    assert!(conflict.message().ends_with("using stable.example.com/v1: .hostPort"), "{}", conflict.message());
    let applied = api.apply(&format!("{v2}/a"), "me&force=true", config).await;
    assert_eq!(applied.code, 200, "{}", applied.text);
    let live = api.get(&format!("{v1}/a")).await;
    assert_eq!(live["hostPort"], "changed:10");
    let owners = live["metadata"]["managedFields"].as_array().unwrap();
    let mine = owners.iter().find(|entry| entry["manager"] == "me").unwrap();
    assert_eq!((&mine["apiVersion"], &mine["fieldsV1"]), (&json!("stable.example.com/v2"), &json!({"f:port": {}})));
    assert!(!owners.iter().any(|entry| entry["fieldsV1"].get("f:hostPort").is_some()), "{owners:?}");
}

async fn conversions_that_fail(api: Api) {
    let hooks = HookServer::start(&["localhost"], |_, review| {
        let mut answer = answer(review);
        let object = &mut answer["response"]["convertedObjects"][0];
        match review["request"]["objects"][0]["metadata"]["name"].as_str().unwrap() {
            "renamed" => object["metadata"]["name"] = json!("other"),
            "lost" => answer["response"]["convertedObjects"] = json!([]),
            "refused" => answer["response"]["result"] = json!({"status": "Failure", "message": "not this one"}),
            "same" => object["apiVersion"] = json!("stable.example.com/v1"),
            _ => return json!({"httpCode": 500}),
        }
        answer
    })
    .await;
    serve(&api, hooks.url("/convert")).await;
    let subject = "conversion webhook for stable.example.com/v1, Kind=Host";
    for (name, why) in [
        ("renamed", " returned invalid converted object at index 0: must have the same name: renamed != other"),
        ("lost", " returned 0 objects, expected 1"),
        ("refused", " failed: not this one"),
        (
            "same",
            " returned invalid converted object at index 0: invalid groupVersion (expected stable.example.com/v2, received stable.example.com/v1)",
        ),
        ("broken", " failed: an error on the server (\"it broke\") has prevented the request from succeeding"),
    ] {
        let object = json!({"apiVersion": "stable.example.com/v1", "kind": "Host", "metadata": {"name": name}, "hostPort": "a:1"});
        api.ok(&format!("POST {GROUP}/v1/namespaces/default/hosts"), object).await;
        let answer = api.send(&format!("GET {GROUP}/v2/namespaces/default/hosts/{name}"), Value::Null).await;
        assert_eq!((answer.code, answer.message()), (500, format!("{subject}{why}").as_str()));
    }
    let mut bad = definition(json!({"url": "http://localhost"}));
    bad["spec"]["conversion"]["webhook"]["conversionReviewVersions"] = json!([]);
    let answer = api.send(&format!("PUT {DEFINITIONS}/hosts.stable.example.com"), bad).await;
    assert_eq!(answer.code, 422, "{}", answer.text);
    // The definition goes with all its objects, though nothing can be converted.
    api.ok(&format!("DELETE {DEFINITIONS}/hosts.stable.example.com"), Value::Null).await;
    for _ in 0..500 {
        if api.send(&format!("GET {DEFINITIONS}/hosts.stable.example.com"), Value::Null).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the definition stays");
}
