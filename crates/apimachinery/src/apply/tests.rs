//! Apply and update, end to end: objects in, objects and owners out.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::{Field, List, ListKind, Object, Scalar, Shape, Type, builtin};

static NO_RESET: LazyLock<Filter> = LazyLock::new(Filter::all);
static MAIN: LazyLock<Filter> = LazyLock::new(|| Filter::except(&[&["status"]]));
static STATUS: LazyLock<Filter> = LazyLock::new(|| Filter::except(&[&["spec"], &["metadata", "labels"]]));

fn by<'a>(name: &'a str, now: &'a str) -> Manager<'a> {
    Manager { name, api_version: "apps/v1", subresource: "", now, reset: &MAIN }
}

fn deployment_root() -> TypeId {
    builtin().by_kind("apps", "v1", "Deployment").unwrap()
}

fn applied(live: Option<&Value>, config: &Value, name: &str, force: bool) -> Result<Value, ApplyError> {
    apply(builtin(), deployment_root(), &OneVersion, live, config, &by(name, "2026-01-01T00:00:00Z"), force)
}

fn updated(old: Option<&Value>, mut new: Value, name: &str, now: &str) -> Value {
    track_update(builtin(), deployment_root(), &OneVersion, old, &mut new, &by(name, now)).unwrap();
    new
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "d"}, "spec": spec})
}

/// `manager operation: paths`, an entry a line.
fn owners(object: &Value) -> String {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |entry: &Value| {
        let paths = FieldSet::parse(&entry["fieldsV1"]).unwrap().paths().join(" ");
        let sub = entry.get("subresource").and_then(Value::as_str).map(|s| format!("/{s}")).unwrap_or_default();
        format!("{}{sub} {}: {paths}\n", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap())
    };
    entries.iter().map(line).collect()
}

#[test]
fn create_and_update_record_owners() {
    let created = updated(
        None,
        deployment(json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}})),
        "kubectl-create",
        "t0",
    );
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": "t0", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
                ".": {}, "k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:name": {}},
            }}}}},
        }])
    );
    let mut scaled = created.clone();
    scaled["spec"]["replicas"] = 3.into();
    scaled["metadata"]["labels"] = json!({"x": "y"});
    scaled["status"] = json!({"replicas": 1});
    let scaled = updated(Some(&created), scaled, "scaler", "t1");
    assert_eq!(
        owners(&scaled),
        "kubectl-create Update: .spec.template.spec.containers .spec.template.spec.containers[name=\"a\"] \
         .spec.template.spec.containers[name=\"a\"].image .spec.template.spec.containers[name=\"a\"].name\n\
         scaler Update: .metadata.labels .metadata.labels.x .spec.replicas\n"
    );
    // Nothing changed: nothing is written, and no time moves.
    assert_eq!(updated(Some(&scaled), scaled.clone(), "other", "t2"), scaled);
    // What is removed has no owner any more.
    let mut bare = scaled.clone();
    bare["metadata"].as_object_mut().unwrap().remove("labels");
    assert!(!owners(&updated(Some(&scaled), bare, "other", "t3")).contains("labels"));
}

#[test]
fn conflicts_name_the_owner() {
    let live = updated(None, deployment(json!({"replicas": 1, "paused": false})), "kubectl-client-side-apply", "t0");
    let error = applied(Some(&live), &deployment(json!({"replicas": 2})), "me", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let status = error.status();
    assert_eq!((status.code, status.reason), (409, "Conflict"));
    assert_eq!(
        status.details.unwrap().causes,
        [Cause {
            reason: "FieldManagerConflict".into(),
            message: "conflict with \"kubectl-client-side-apply\" using apps/v1".into(),
            field: ".spec.replicas".into(),
        }]
    );
    let error = applied(Some(&live), &deployment(json!({"replicas": 2, "paused": true})), "me", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    let forced = applied(Some(&live), &deployment(json!({"replicas": 2})), "me", true).unwrap();
    assert_eq!(owners(&forced), "me Apply: .spec.replicas\nkubectl-client-side-apply Update: .spec.paused\n");
    // The same value is shared, without conflict.
    let shared = applied(Some(&live), &deployment(json!({"replicas": 1})), "me", false).unwrap();
    assert_eq!(
        owners(&shared),
        "me Apply: .spec.replicas\nkubectl-client-side-apply Update: .spec.paused .spec.replicas\n"
    );
}

#[test]
fn unapplied_fields_go_unless_owned() {
    let config = |replicas: bool, containers: &[&str]| {
        let containers: Vec<Value> = containers.iter().map(|n| json!({"name": n, "image": "i"})).collect();
        let mut spec = json!({"template": {"spec": {"containers": containers}}});
        if replicas {
            spec["replicas"] = 1.into();
            spec["template"]["spec"]["securityContext"] = json!({"runAsUser": 1});
        }
        deployment(spec)
    };
    let names = |object: &Value| {
        let containers = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut first = applied(None, &config(true, &["a", "b"]), "me", false).unwrap();
    // Defaults belong to nobody; they go with the item that they stand in.
    first["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    first["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    let second = applied(Some(&first), &config(false, &["b"]), "me", false).unwrap();
    assert_eq!(names(&second), ["b"]);
    assert_eq!(second["spec"].get("replicas"), None);
    assert_eq!(second["spec"]["template"]["spec"].get("securityContext"), None);
    assert_eq!(second["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "Always");
    // Somebody else applies container `a`, so it stays.
    let shared = applied(Some(&first), &config(false, &["a"]), "other", false).unwrap();
    let third = applied(Some(&shared), &config(false, &["b"]), "me", false).unwrap();
    assert_eq!(names(&third), ["a", "b"]);
}

#[test]
fn lists_take_the_order_of_the_configuration() {
    let config = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
        deployment(json!({"template": {"spec": {"containers": containers}}}))
    };
    let live = updated(None, config(&["a", "b", "c", "d"]), "u", "t0");
    for (order, expected) in [
        (&["d", "a"][..], &["b", "c", "d", "a"][..]),
        (&["c", "b"], &["a", "c", "d", "b"]),
        (&["x", "b"], &["a", "x", "b", "c", "d"]),
        (&["d", "c", "b", "a"], &["d", "c", "b", "a"]),
    ] {
        let merged = applied(Some(&live), &config(order), "me", true).unwrap();
        let containers = merged["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        let names: Vec<&str> = containers.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{order:?}");
    }
}

#[test]
fn keys_use_defaults() {
    let root = builtin().by_kind("", "v1", "Service").unwrap();
    let manager = Manager { api_version: "v1", ..by("me", "t0") };
    let service = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}});
    let live = apply(builtin(), root, &OneVersion, None, &service(json!([{"port": 80}])), &manager, false).unwrap();
    assert_eq!(
        owners(&live),
        "me Apply: .spec.ports[port=80,protocol=\"TCP\"] .spec.ports[port=80,protocol=\"TCP\"].port\n"
    );
    let mut defaulted = live;
    defaulted["spec"]["ports"][0]["protocol"] = "TCP".into();
    let again = apply(builtin(), root, &OneVersion, Some(&defaulted), &service(json!([{"port": 80}])), &manager, false)
        .unwrap();
    assert_eq!(again, defaulted);
}

#[test]
fn refuses_what_does_not_fit() {
    let cases = [
        (json!({"replicass": 1}), ".spec.replicass: field not declared in schema"),
        (json!({"replicas": "1"}), ".spec.replicas: expected numeric (int or float), got string"),
        (json!({"template": []}), ".spec.template: expected map, got &{[]}"),
        (
            json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"template": {"spec": {"containers": [{"image": "a"}]}}}),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            json!({"a": 1, "b": 2}),
            "errors:\n  .spec.a: field not declared in schema\n  .spec.b: field not declared in schema",
        ),
    ];
    for (spec, expected) in cases {
        let error = applied(None, &deployment(spec), "me", false).unwrap_err();
        let prefix = "failed to create typed patch object (d/web; apps/v1, Kind=Deployment): ";
        assert_eq!(error.to_string(), format!("{prefix}{expected}"));
        assert_eq!(error.status().code, 500);
    }
    let mut config = deployment(json!({}));
    config["metadata"]["managedFields"] = json!([]);
    assert_eq!(applied(None, &config, "me", false).unwrap_err().status().message, "metadata.managedFields must be nil");
    let other = Manager { api_version: "apps/v2", ..by("me", "t") };
    let error =
        apply(builtin(), deployment_root(), &OneVersion, None, &deployment(json!({})), &other, false).unwrap_err();
    assert_eq!(error.status().code, 400);
}

#[test]
fn managed_fields_can_be_reset_and_survive_ignorance() {
    let live = updated(None, deployment(json!({"replicas": 1})), "u", "t0");
    let mut change = live.clone();
    change["metadata"].as_object_mut().unwrap().remove("managedFields");
    change["spec"]["paused"] = true.into();
    let ignorant = updated(Some(&live), change.clone(), "old-client", "t1");
    assert_eq!(owners(&ignorant), "u Update: .spec.replicas\nold-client Update: .spec.paused\n");
    for reset in [json!([]), json!([{}])] {
        change["metadata"]["managedFields"] = reset;
        let reset = updated(Some(&live), change.clone(), "u2", "t1");
        assert_eq!(reset["metadata"].get("managedFields"), None);
        // The first apply takes note of what was there.
        let applied = applied(Some(&reset), &deployment(json!({"replicas": 1})), "me", false).unwrap();
        assert_eq!(
            owners(&applied),
            "me Apply: .spec.replicas\nbefore-first-apply Update: .spec.paused .spec.replicas\n"
        );
    }
    change["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Update"}]);
    assert!(owners(&updated(Some(&live), change, "u2", "t1")).contains("u Update: .spec.replicas"));
}

#[test]
fn subresources_have_entries_of_their_own() {
    let live = updated(None, deployment(json!({"replicas": 1})), "u", "t0");
    let mut change = live.clone();
    change["status"] = json!({"replicas": 1});
    change["metadata"]["managedFields"] = json!([]);
    change["spec"]["replicas"] = 9.into();
    let manager = Manager { subresource: "status", reset: &STATUS, ..by("u", "t1") };
    track_update(builtin(), deployment_root(), &OneVersion, Some(&live), &mut change, &manager).unwrap();
    assert_eq!(owners(&change), "u Update: .spec.replicas\nu/status Update: .status.replicas\n");
}

#[test]
fn names_of_managers_are_checked() {
    let errors = |name: &str| field::aggregate(&validate_manager(name, &field::Path::new("fieldManager")));
    assert_eq!(errors("kubectl é"), "[]");
    assert_eq!(errors(&"a".repeat(129)), "fieldManager: Too long: may not be more than 128 bytes");
    assert_eq!(errors("a\nb"), "fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)");
}

#[test]
fn updates_are_capped() {
    let mut object = updated(None, deployment(json!({"replicas": 1})), "u", "2026-01-01T00:00:00Z");
    for i in 0..14 {
        let mut change = object.clone();
        change["metadata"]["labels"][format!("l{i:02}")] = "x".into();
        object = updated(Some(&object), change, &format!("m{i:02}"), &format!("2026-01-01T00:00:{i:02}Z"));
    }
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(entries[0]["time"], "2026-01-01T00:00:04Z");
    assert_eq!(entries[1]["manager"], "m05");
    assert_eq!(FieldSet::parse(&entries[0]["fieldsV1"]).unwrap().paths().len(), 7);
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let config = deployment(json!({"replicas": 1}));
    let mut live = config.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: config.to_string()});
    let live = updated(None, live, "kubectl-client-side-apply", "t0");
    let taken = applied(Some(&live), &deployment(json!({"replicas": 2})), "kubectl", false).unwrap();
    assert_eq!(taken["spec"]["replicas"], 2);
    let annotation = taken["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
    assert!(annotation.contains("\"replicas\":2") && annotation.ends_with('\n'));
    // What somebody changed since is theirs.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    let scaled = updated(Some(&live), scaled, "hpa", "t1");
    assert!(applied(Some(&scaled), &deployment(json!({"replicas": 2})), "kubectl", false).is_err());
}

#[test]
fn timestamps_alone_do_not_count() {
    let old = updated(None, deployment(json!({"replicas": 1})), "u", "t0");
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = "t9".into();
    let mut kept = new.clone();
    keep_timestamps(&old, &mut kept);
    assert_eq!(kept, old);
    new["spec"]["replicas"] = 2.into();
    let changed = new.clone();
    keep_timestamps(&old, &mut new);
    assert_eq!(new, changed);
}

/// A custom resource: a set, a free-form field, an atomic and a granular map.
fn custom_schema() -> (Schema, TypeId) {
    let types = vec![
        Type::inline(Shape::Scalar(Scalar::String)),
        Type::inline(Shape::List(List { item: TypeId(0), kind: ListKind::Set })),
        Type::inline(Shape::Any),
        Type::inline(Shape::Map { value: TypeId(0), atomic: true }),
        Type::inline(Shape::Map { value: TypeId(0), atomic: false }),
        Type::inline(Shape::Object(Object {
            fields: vec![
                Field::new("apiVersion", TypeId(0)),
                Field::new("atomic", TypeId(3)),
                Field::new("free", TypeId(2)),
                Field::new("map", TypeId(4)),
                Field::new("metadata", TypeId(2)),
                Field::new("set", TypeId(1)),
            ],
            ..Object::default()
        })),
    ];
    let mut schema = Schema::new(types);
    schema.structural = true;
    (schema, TypeId(5))
}

fn apply_custom(live: Option<&Value>, config: &Value, name: &str, force: bool) -> Result<Value, ApplyError> {
    let (schema, root) = custom_schema();
    let manager = Manager { name, api_version: "x/v1", subresource: "", now: "t", reset: &NO_RESET };
    apply(&schema, root, &OneVersion, live, config, &manager, force)
}

#[test]
fn sets_atoms_and_free_form() {
    let a = json!({"apiVersion": "x/v1", "set": ["p", "q"], "free": {"n": {"m": 1}, "l": [1]}, "atomic": {"k": "1"}, "map": {"k": "1"}});
    let live = apply_custom(None, &a, "a", false).unwrap();
    assert_eq!(owners(&live), "a Apply: .atomic .free.l .free.n .free.n.m .map.k .set[=\"p\"] .set[=\"q\"]\n");
    let b = json!({"apiVersion": "x/v1", "set": ["q", "r"], "free": {"n": {"o": 2}}, "map": {"j": "2"}});
    let both = apply_custom(Some(&live), &b, "b", false).unwrap();
    assert_eq!(both["set"], json!(["p", "q", "r"]));
    assert_eq!(both["free"], json!({"n": {"m": 1, "o": 2}, "l": [1]}));
    let rest = apply_custom(Some(&both), &json!({"apiVersion": "x/v1"}), "a", false).unwrap();
    assert_eq!(rest["set"], json!(["q", "r"]));
    assert_eq!(rest["free"], json!({"n": {"o": 2}}));
    assert_eq!(rest["map"], json!({"j": "2"}));
    assert_eq!(rest.get("atomic"), None);
    let clash = json!({"apiVersion": "x/v1", "atomic": {"z": "1"}});
    assert!(apply_custom(Some(&live), &clash, "b", false).is_err());
    // A null in the configuration owns the field and leaves alone what others have put there.
    let null = apply_custom(Some(&live), &json!({"apiVersion": "x/v1", "free": {"n": null}}), "c", false).unwrap();
    assert_eq!(null["free"], live["free"]);
    let mut duplicates = a;
    duplicates["set"] = json!(["p", "p"]);
    assert!(apply_custom(None, &duplicates, "a", false).is_err());
}

/// JSON in the shape of a Deployment, or nearly.
fn any_json() -> impl Strategy<Value = Value> {
    let keys = [
        "spec",
        "metadata",
        "managedFields",
        "template",
        "containers",
        "name",
        "ports",
        "containerPort",
        "protocol",
        "labels",
        "finalizers",
        "replicas",
        "fieldsV1",
        "f:spec",
        "k:{\"name\":\"a\"}",
        ".",
        "operation",
        "manager",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "tolerations",
        "status",
        "apiVersion",
        "fieldsType",
    ];
    let texts = ["a", "b", "delete", "replace", "merge", "Apply", "Update", "FieldsV1", "apps/v1", "name"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..3).prop_map(Value::from),
        prop::sample::select(texts.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(prop::sample::select(keys.to_vec()), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

fn any_config() -> impl Strategy<Value = Value> {
    let set = prop::collection::btree_set("[p-s]", 0..4);
    let map = prop::collection::btree_map("[i-l]", "[0-2]", 0..4);
    let free = prop::collection::btree_map("[a-c]", prop::collection::btree_map("[x-z]", 0..3i64, 0..3), 0..3);
    let atomic = prop::option::of(prop::collection::btree_map("[i-l]", "[0-2]", 0..2));
    (set, map, free, atomic).prop_map(|(set, map, free, atomic)| {
        let mut config = json!({"apiVersion": "x/v1", "set": set, "map": map, "free": free});
        if let Some(atomic) = atomic {
            config["atomic"] = json!(atomic);
        }
        config
    })
}

proptest! {
    #[test]
    fn nothing_panics(old in any_json(), new in any_json(), spec in any_json(), force in any::<bool>()) {
        let mut tracked = new.clone();
        track_update(builtin(), deployment_root(), &OneVersion, Some(&old), &mut tracked, &by("u", "t")).unwrap();
        let mut created = new.clone();
        track_update(builtin(), deployment_root(), &OneVersion, None, &mut created, &by("u", "t")).unwrap();
        keep_timestamps(&tracked, &mut created);
        for config in [&new, &deployment(spec.clone())] {
            let _ = applied(Some(&tracked), config, "kubectl", force);
            let _ = apply_custom(Some(&old), config, "a", force);
        }
        let _ = crate::patch::strategic::apply(builtin(), deployment_root(), old.clone(), new.clone());
        let _ = crate::patch::strategic::apply(builtin(), deployment_root(), deployment(spec.clone()), deployment(new.clone()));
        let _ = crate::patch::json::apply(old.clone(), &new);
        let mut merged = old;
        let _ = crate::patch::merge::apply(&mut merged, new);
    }

    #[test]
    fn applying_again_changes_nothing(a in any_config(), b in any_config()) {
        let live = apply_custom(None, &a, "a", false).unwrap();
        let both = apply_custom(Some(&live), &b, "b", true).unwrap();
        prop_assert_eq!(&apply_custom(Some(&both), &b, "b", false).unwrap(), &both);
    }

    #[test]
    fn what_was_applied_holds(a in any_config(), b in any_config()) {
        let live = apply_custom(None, &a, "a", false).unwrap();
        let both = apply_custom(Some(&live), &b, "b", true).unwrap();
        for (key, value) in b["map"].as_object().unwrap() {
            prop_assert_eq!(&both["map"][key], value);
        }
        for item in b["set"].as_array().unwrap().iter().chain(a["set"].as_array().unwrap()) {
            prop_assert!(both["set"].as_array().unwrap().contains(item));
        }
    }

    #[test]
    fn giving_all_up_leaves_the_others(a in any_config(), b in any_config()) {
        let alone = apply_custom(None, &b, "b", false).unwrap();
        let live = apply_custom(None, &a, "a", false).unwrap();
        if let Ok(both) = apply_custom(Some(&live), &b, "b", false) {
            let rest = apply_custom(Some(&both), &json!({"apiVersion": "x/v1"}), "a", false).unwrap();
            for (key, value) in b["map"].as_object().unwrap() {
                prop_assert_eq!(&rest["map"][key], value);
            }
            prop_assert_eq!(rest["map"].as_object().map_or(0, Map::len), alone["map"].as_object().map_or(0, Map::len));
            prop_assert_eq!(owners(&rest), owners(&alone));
        }
    }
}
