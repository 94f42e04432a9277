//! Tests of owners who wrote in other versions, and of those of a Scale.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::scale::{owners_of_parent, owners_of_scale};
use super::*;
use crate::schema::{Field, List, ListKind, Object, Scalar, Shape, Type};

/// Versions `x/v1` and `x/v2` of a kind: what is `size` in one is `width` in the other; both have a `set`.
fn versioned(field: &str) -> (Schema, TypeId) {
    let mut fields = vec![
        Field::new("apiVersion", TypeId(0)),
        Field::new("metadata", TypeId(3)),
        Field::new("set", TypeId(2)),
        Field::new(field, TypeId(1)),
    ];
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    let types = vec![
        Type::inline(Shape::Scalar(Scalar::String)),
        Type::inline(Shape::Scalar(Scalar::Int64)),
        Type::inline(Shape::List(List { item: TypeId(0), kind: ListKind::Set })),
        Type::inline(Shape::Any),
        Type::inline(Shape::Object(Object { fields, ..Object::default() })),
    ];
    let mut schema = Schema::new(types);
    schema.structural = true;
    (schema, TypeId(4))
}

struct Pair {
    v1: (Schema, TypeId),
    v2: (Schema, TypeId),
    all: Filter,
    /// Objects that have been converted before; others are lacking.
    known: Option<RefCell<Vec<Value>>>,
}

impl Pair {
    fn new() -> Self {
        Pair { v1: versioned("size"), v2: versioned("width"), all: Filter::all(), known: None }
    }
}

fn converted(object: &Value, to: &str) -> Value {
    let mut object = object.clone();
    let (old, new) = if to == "x/v2" { ("size", "width") } else { ("width", "size") };
    object["apiVersion"] = json!(to);
    let map = object.as_object_mut().unwrap();
    if let Some(value) = map.remove(old) {
        map.insert(new.to_owned(), value);
    }
    object
}

impl Versions for Pair {
    fn schema(&self, api_version: &str) -> Option<(&Schema, TypeId)> {
        match api_version {
            "x/v1" => Some((&self.v1.0, self.v1.1)),
            "x/v2" => Some((&self.v2.0, self.v2.1)),
            _ => None,
        }
    }

    fn filter(&self, _api_version: &str) -> &Filter {
        &self.all
    }

    fn convert(&self, object: &Value, to: &str) -> Result<Value, Unconverted> {
        match &self.known {
            Some(known) if !known.borrow().contains(object) => {
                Err(Unconverted { object: Box::new(object.clone()), to: to.to_owned() })
            }
            _ => Ok(converted(object, to)),
        }
    }
}

fn by<'a>(pair: &'a Pair, name: &'a str, api_version: &'a str, now: &'a str) -> Manager<'a> {
    Manager { name, api_version, subresource: "", now, reset: &pair.all }
}

fn apply_in(pair: &Pair, live: Option<&Value>, config: &Value, name: &str) -> Result<Value, ApplyError> {
    let version = meta::str_at(config, &["apiVersion"]).to_owned();
    let (schema, root) = pair.schema(&version).unwrap();
    let live = live.map(|live| if live["apiVersion"] == *version { live.clone() } else { converted(live, &version) });
    apply(schema, root, pair, live.as_ref(), config, &by(pair, name, &version, "t1"), false)
}

#[test]
fn a_change_in_another_version_conflicts_in_the_owners_words() {
    let pair = Pair::new();
    let live = apply_in(&pair, None, &json!({"apiVersion": "x/v1", "size": 1, "set": ["a"]}), "a").unwrap();
    let error = apply_in(&pair, Some(&live), &json!({"apiVersion": "x/v2", "width": 2}), "b").unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .size");
    // The same value is shared, each owning it by its own name.
    let both = apply_in(&pair, Some(&live), &json!({"apiVersion": "x/v2", "width": 1}), "b").unwrap();
    let entries = both["metadata"]["managedFields"].as_array().unwrap();
    let owned = |name: &str| entries.iter().find(|e| e["manager"] == name).unwrap();
    assert_eq!(owned("a")["fieldsV1"], json!({"f:set": {"v:\"a\"": {}}, "f:size": {}}));
    assert_eq!((&owned("b")["fieldsV1"], &owned("b")["apiVersion"]), (&json!({"f:width": {}}), &json!("x/v2")));
    // Nothing changed but who owns it, so there is no time at which it did.
    assert_eq!(owned("b").get("time"), None);
}

#[test]
fn an_update_in_another_version_takes_ownership() {
    let pair = Pair::new();
    let live = apply_in(&pair, None, &json!({"apiVersion": "x/v1", "size": 1, "set": ["a"]}), "a").unwrap();
    let old = converted(&live, "x/v2");
    let mut new = old.clone();
    new["width"] = json!(5);
    let (schema, root) = pair.schema("x/v2").unwrap();
    track_update(schema, root, &pair, Some(&old), &mut new, &by(&pair, "u", "x/v2", "t2")).unwrap();
    assert_eq!(
        new["metadata"]["managedFields"],
        json!([
            {"manager": "a", "operation": "Apply", "apiVersion": "x/v1", "time": "t1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:set": {"v:\"a\"": {}}}},
            {"manager": "u", "operation": "Update", "apiVersion": "x/v2", "time": "t2", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:width": {}}},
        ])
    );
    // An owner in a version that is gone is forgotten.
    new["metadata"]["managedFields"][0]["apiVersion"] = json!("x/v0");
    let old = new.clone();
    new["width"] = json!(6);
    track_update(schema, root, &pair, Some(&old), &mut new, &by(&pair, "u", "x/v2", "t3")).unwrap();
    assert_eq!(new["metadata"]["managedFields"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_given_up_in_another_version_goes_unless_owned_there() {
    let pair = Pair::new();
    let config = json!({"apiVersion": "x/v1", "size": 1, "set": ["a", "b"]});
    let live = apply_in(&pair, None, &config, "a").unwrap();
    let less = apply_in(&pair, Some(&live), &json!({"apiVersion": "x/v2", "set": ["b"]}), "a").unwrap();
    assert_eq!((less.get("width"), &less["set"]), (None, &json!(["b"])));
    let shared = apply_in(&pair, Some(&live), &json!({"apiVersion": "x/v2", "width": 1}), "b").unwrap();
    let kept = apply_in(&pair, Some(&shared), &json!({"apiVersion": "x/v1", "set": ["b"]}), "a").unwrap();
    assert_eq!((&kept["size"], &kept["set"]), (&json!(1), &json!(["b"])));
}

#[test]
fn a_lacking_conversion_leaves_all_as_it_was_for_the_next_call() {
    let mut pair = Pair::new();
    let live = apply_in(&pair, None, &json!({"apiVersion": "x/v1", "size": 1}), "a").unwrap();
    let old = converted(&live, "x/v2");
    let mut wanted = old.clone();
    wanted["width"] = json!(2);
    let (schema, root) = versioned("width");
    let mut at_once = wanted.clone();
    track_update(&schema, root, &pair, Some(&old), &mut at_once, &by(&pair, "u", "x/v2", "t2")).unwrap();
    pair.known = Some(RefCell::default());
    let mut asked = 0;
    loop {
        let tracked = track_update(&schema, root, &pair, Some(&old), &mut wanted, &by(&pair, "u", "x/v2", "t2"));
        let Err(lacking) = tracked else { break };
        assert_eq!(lacking.to, "x/v1");
        asked += 1;
        pair.known.as_ref().unwrap().borrow_mut().push(*lacking.object);
    }
    assert_eq!((asked, wanted), (2, at_once));
}

fn entry(manager: &str, operation: &str, version: &str, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "apiVersion": version, "fieldsType": "FieldsV1", "time": "t", "fieldsV1": fields})
}

#[test]
fn a_scale_shows_and_takes_the_owners_of_replicas() {
    let path = |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect());
    let paths = vec![("apps/v1".to_owned(), path(&["spec", "replicas"]))];
    let with = |entries: Vec<Value>| json!({"metadata": {"managedFields": entries}});
    let replicas = json!({"f:spec": {"f:replicas": {}}});
    let deployment = with(vec![
        entry("a", "Apply", "apps/v1", json!({"f:spec": {"f:replicas": {}, "f:paused": {}}})),
        entry("u", "Update", "apps/v1", json!({"f:spec": {"f:selector": {}}})),
        entry("gone", "Update", "apps/v0", replicas.clone()),
    ]);
    let shown = owners_of_scale(&deployment, &paths).unwrap();
    assert_eq!(shown, json!([entry("a", "Apply", "autoscaling/v1", replicas.clone())]));
    // Unchanged: the owner keeps it. Changed by another: it is theirs, at a time that upstream does not tell.
    let kept = owners_of_parent(&deployment, &with(vec![shown[0].clone()]), "apps/v1", &paths).unwrap();
    assert_eq!(kept[0], deployment["metadata"]["managedFields"][0]);
    assert_eq!(kept.as_array().unwrap().len(), 2);
    let mut scaler = entry("s", "Update", "autoscaling/v1", replicas.clone());
    scaler["subresource"] = json!("scale");
    let taken = owners_of_parent(&deployment, &with(vec![scaler]), "apps/v1", &paths).unwrap();
    assert_eq!(
        taken,
        json!([
            entry("a", "Apply", "apps/v1", json!({"f:spec": {"f:paused": {}}})),
            {"manager": "s", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "subresource": "scale",
                "fieldsV1": replicas},
            entry("u", "Update", "apps/v1", json!({"f:spec": {"f:selector": {}}})),
        ])
    );
}
