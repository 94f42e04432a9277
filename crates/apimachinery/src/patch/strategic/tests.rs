//! Documents and patches in, documents out.

use super::*;
use crate::schema::builtin;
use proptest::prelude::*;
use serde_json::json;

fn patched(kind: (&str, &str, &str), document: &Value, patch: &Value) -> Result<Value> {
    let root = builtin().by_kind(kind.0, kind.1, kind.2).unwrap();
    apply(builtin(), root, document.clone(), patch.clone())
}

const POD: (&str, &str, &str) = ("", "v1", "Pod");
const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");

fn containers(names: &[&str]) -> Value {
    Value::Array(names.iter().map(|n| json!({"name": n, "image": format!("{n}:1")})).collect())
}

fn names(pod: &Value) -> Vec<&str> {
    pod["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect()
}

#[test]
fn merges_lists_by_key() {
    let pod = json!({"spec": {"containers": containers(&["a", "b"])}});
    let merged = patched(POD, &pod, &json!({"spec": {"containers": [{"name": "b", "image": "b:2"}, {"name": "c"}]}}));
    assert_eq!(
        merged.unwrap()["spec"]["containers"],
        json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}, {"name": "c"}])
    );
    let merged = patched(POD, &pod, &json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})).unwrap();
    assert_eq!(names(&merged), ["b"]);
    let replace = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}});
    assert_eq!(names(&patched(POD, &pod, &replace).unwrap()), ["z"]);
}

#[test]
fn orders_lists() {
    let pod = json!({"spec": {"containers": containers(&["a", "b", "c"])}});
    let order = |names: &[&str]| Value::Array(names.iter().map(|n| json!({"name": n})).collect());
    let patch =
        json!({"spec": {"$setElementOrder/containers": order(&["c", "x", "a"]), "containers": [{"name": "x"}]}});
    assert_eq!(names(&patched(POD, &pod, &patch).unwrap()), ["b", "c", "x", "a"]);
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["b", "a"])}});
    assert_eq!(names(&patched(POD, &pod, &patch).unwrap()), ["b", "a", "c"]);
    // A new element takes the place of a deleted one, as far as order is concerned.
    let swap = json!([{"name": "x"}, {"name": "a", "$patch": "delete"}]);
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["b", "x"]), "containers": swap}});
    assert_eq!(names(&patched(POD, &pod, &patch).unwrap()), ["b", "c", "x"]);
    let patch = json!({"spec": {"$setElementOrder/containers": order(&["a"]), "containers": [{"name": "x"}]}});
    let error = patched(POD, &pod, &patch).unwrap_err().to_string();
    assert!(error.starts_with("The order in patch list:\n[map[name:x]]\n doesn't match"), "{error}");
}

#[test]
fn merges_maps_and_scalars() {
    let pod = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}, "spec": {"nodeSelector": {"k": "v"}}});
    let patch = json!({
        "metadata": {
            "labels": {"a": null, "c": "3"}, "annotations": {"n": null},
            "$deleteFromPrimitiveList/finalizers": ["x"], "finalizers": ["z"],
        },
        "spec": {"nodeSelector": {"$patch": "replace", "q": "1"}, "tolerations": [{"key": "t"}]},
    });
    assert_eq!(
        patched(POD, &pod, &patch).unwrap(),
        json!({
            "metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {}, "finalizers": ["z", "y"]},
            "spec": {"nodeSelector": {"q": "1"}, "tolerations": [{"key": "t"}]},
        })
    );
}

#[test]
fn retains_keys() {
    let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(patched(DEPLOYMENT, &deployment, &patch).unwrap(), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let stray = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    let error = patched(DEPLOYMENT, &deployment, &stray).unwrap_err();
    assert_eq!(error.status().message, "invalid patch format of retainKeys");
}

#[test]
fn refuses_malformed_patches() {
    let pod = json!({"spec": {"containers": containers(&["a"])}, "metadata": {"x": {}}});
    for (patch, expected) in [
        (json!({"$patch": "x"}), "unknown patch type: x in map: map[$patch:x]"),
        (
            json!({"spec": {"containers": [{"image": "i"}]}}),
            "map: map[image:i] does not contain declared merge key: name",
        ),
        (json!({"spec": {"containers": [1]}}), "list element types are not identical: [[map[image:a:1 name:a]] [1]]"),
        (json!({"spec": {"containers": [[]]}}), "lists of lists are not supported"),
        (json!({"spec": {"$setElementOrder/containers": 1}}), "expected a []interface {}, but received a int64"),
        (json!({"spec": {"$setElementOrders/containers": []}}), "invalid patch format of setElementOrder list"),
        (
            json!({"metadata": {"x": {"y": 1}}}),
            "unable to find api field in struct ObjectMeta for the json field \"x\"",
        ),
    ] {
        assert_eq!(patched(POD, &pod, &patch).unwrap_err().to_string(), expected);
    }
}

fn any_pod() -> impl Strategy<Value = Value> {
    let container = ("[a-e]", prop::option::of("[x-z]"), prop::collection::btree_set("[A-C]", 0..3)).prop_map(
        |(name, image, env)| {
            let env: Vec<Value> = env.into_iter().map(|e| json!({"name": e, "value": "1"})).collect();
            let mut container = json!({"name": name, "env": env});
            if let Some(image) = image {
                container["image"] = image.into();
            }
            container
        },
    );
    let containers = prop::collection::vec(container, 0..5).prop_map(|mut list| {
        let mut seen = HashSet::new();
        list.retain(|c| seen.insert(c["name"].to_string()));
        list
    });
    let labels = prop::collection::btree_map("[a-c]", "[0-2]", 0..3);
    let finalizers = prop::collection::btree_set("[p-s]", 0..4);
    (containers, labels, finalizers)
        .prop_map(|(c, l, f)| json!({"metadata": {"labels": l, "finalizers": f}, "spec": {"containers": c}}))
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(document in any_pod(), patch in any_pod()) {
        let once = patched(POD, &document, &patch).unwrap();
        prop_assert_eq!(&patched(POD, &once, &patch).unwrap(), &once);
        // What the patch says holds afterwards, and nobody is lost.
        for c in patch["spec"]["containers"].as_array().unwrap().iter().chain(document["spec"]["containers"].as_array().unwrap()) {
            prop_assert!(names(&once).contains(&c["name"].as_str().unwrap()));
        }
    }

    #[test]
    fn patching_with_itself_changes_nothing(document in any_pod()) {
        prop_assert_eq!(&patched(POD, &document, &document).unwrap(), &document);
    }
}
