//! Schemas in, behaviour out: what is pruned, defaulted, refused, and in which words.

use super::*;
use crate::schema::decode::Duplicates;
use crate::schema::{FieldValidation, check, default, validate};

fn compile(schema: Value) -> Result<(Schema, TypeId), Vec<String>> {
    compile_crd_schema(&schema, &Path::new("s")).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn cron_tab() -> Value {
    json!({
        "type": "object", "required": ["spec"],
        "properties": {
            "spec": {"type": "object", "required": ["cron"], "properties": {
                "cron": {"type": "string", "pattern": "^[0-9* ]+$", "maxLength": 9},
                "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 2},
                "mode": {"type": "string", "enum": ["Fast", "Slow"], "nullable": true},
                "at": {"type": "string", "format": "date-time"},
                "port": {"x-kubernetes-int-or-string": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "ports": {
                    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string"}, "protocol": {"type": "string", "default": "TCP"},
                    }},
                },
            }},
        },
    })
}

/// What a request does: check, default, validate. Answers with the object and the errors.
fn run(object: Value) -> (Value, Vec<String>) {
    let (schema, root) = compile(cron_tab()).unwrap();
    let mut object = object;
    check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Ignore).unwrap();
    default(&schema, root, &mut object);
    let errors = validate(&schema, root, &object).iter().map(ToString::to_string).collect();
    (object, errors)
}

#[test]
fn objects_are_pruned_and_defaulted() {
    let (object, errors) = run(json!({
        "apiVersion": "a/v1", "kind": "C", "metadata": {"name": "x", "bogus": 1}, "other": 1,
        "spec": {"cron": "* *", "mode": null, "replicas": null, "free": {"a": [1, null]}, "ports": [{"name": "p", "x": 1}],
                 "labels": {"a": "b"}, "port": "http", "at": "2024-01-02T03:04:05.678Z"},
    }));
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        object,
        json!({
            "apiVersion": "a/v1", "kind": "C", "metadata": {"name": "x"},
            "spec": {"cron": "* *", "mode": null, "replicas": 2, "free": {"a": [1, null]},
                     "ports": [{"name": "p", "protocol": "TCP"}], "labels": {"a": "b"}, "port": "http",
                     "at": "2024-01-02T03:04:05.678Z"},
        })
    );
}

#[test]
fn faults_are_worded_as_upstream_does() {
    let (_, errors) = run(json!({}));
    assert_eq!(errors, ["spec: Required value"]);
    let (_, errors) = run(json!({"spec": {
        "cron": "daily at nine", "replicas": 11, "mode": "Medium", "port": 1.5, "labels": {"a": 1}, "set": ["a", "a"],
        "ports": [{"name": "a"}, {"name": "a"}], "at": "soon",
    }}));
    assert_eq!(
        errors,
        [
            r#"spec.at: Invalid value: "soon": spec.at in body must be of type date-time: "soon""#,
            "spec.cron: Too long: may not be more than 9 bytes",
            r#"spec.cron: Invalid value: "daily at nine": spec.cron in body should match '^[0-9* ]+$'"#,
            r#"spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer""#,
            r#"spec.mode: Unsupported value: "Medium": supported values: "Fast", "Slow""#,
            r#"spec.port: Invalid value: "number": spec.port in body must be of type integer,string: "number""#,
            r#"spec.ports[1]: Duplicate value: {"name":"a"}"#,
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
            r#"spec.set[1]: Duplicate value: "a""#,
        ]
    );
    let (_, errors) = run(json!({"spec": {"cron": null, "replicas": "2", "set": [null], "labels": {"a": null}}}));
    assert_eq!(
        errors,
        [
            "spec.cron: Required value",
            r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
            r#"spec.set[0]: Invalid value: "null": spec.set[0] in body must be of type string: "null""#,
        ]
    );
}

#[test]
fn junctions_judge_values() {
    let property = json!({
        "type": "object",
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "not": {"properties": {"a": {"enum": ["bad"]}}, "required": ["a"]},
        "properties": {
            "a": {"type": "string"}, "b": {"type": "string"},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^p"}]},
        },
    });
    let (schema, root) = compile(json!({"type": "object", "properties": {"s": property}})).unwrap();
    let errors = |s: Value| -> Vec<String> {
        validate(&schema, root, &json!({ "s": s })).iter().map(ToString::to_string).collect()
    };
    assert_eq!(errors(json!({"a": "x", "port": 1})), [""; 0]);
    assert_eq!(errors(json!({"b": "x", "port": "pp"})), [""; 0]);
    let none = r#"s: Invalid value: "": "s" must validate one and only one schema (oneOf). Found none valid"#;
    assert_eq!(errors(json!({})), [none]);
    assert_eq!(errors(json!({"a": "", "b": ""})), [none.replace("none valid", "2 valid alternatives")]);
    assert_eq!(errors(json!({"a": "bad"})), [r#"s: Invalid value: "": "s" must not validate the schema (not)"#]);
    assert_eq!(errors(json!({"a": "x", "port": "q"})).len(), 2);
}

#[test]
fn metadata_is_checked_as_that_of_built_in_kinds() {
    let (schema, root) = compile(cron_tab()).unwrap();
    let mut object = json!({"metadata": {"labels": {"a": 1}}});
    let refused = check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Strict).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
    let mut object = json!({"metadata": {"nam": 1}, "spec": {"cronn": 1}});
    let refused = check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Strict).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"strict decoding error: unknown field "metadata.nam", unknown field "spec.cronn""#
    );
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let errors = |schema: Value| compile(schema).map(drop).unwrap_err();
    assert_eq!(errors(json!({})), ["s.type: Required value: must not be empty at the root"]);
    let property = |property: Value| errors(json!({"type": "object", "properties": {"a": property}}));
    assert_eq!(
        property(json!({})),
        ["s.properties[a].type: Required value: must not be empty for specified object fields"]
    );
    assert_eq!(property(json!({"type": "array"})), ["s.properties[a].items: Required value: must be specified"]);
    assert_eq!(
        property(json!({"type": "string", "pattern": "("})),
        [r#"s.properties[a].pattern: Invalid value: "(": must be a valid regular expression, but isn't"#]
    );
    assert_eq!(
        property(json!({"type": "integer", "default": "x"})),
        [
            r#"s.properties[a].default: Invalid value: "string": s.properties[a].default in body must be of type integer: "string""#
        ]
    );
    assert_eq!(property(json!({"type": "thing"})).len(), 1);
    assert_eq!(
        errors(json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {}}}}})),
        ["s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, \
          but metadata is implicitly specified"]
    );
}

#[test]
fn embedded_resources_are_objects_of_their_own() {
    let schema = json!({"type": "object", "properties": {
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
    }});
    let (schema, root) = compile(schema).unwrap();
    let mut object = json!({"pod": {"kind": "Pod", "metadata": {"name": "a", "bogus": 1}, "spec": {"x": null}}});
    check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Ignore).unwrap();
    assert_eq!(object, json!({"pod": {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"x": null}}}));
    let errors: Vec<String> = validate(&schema, root, &object).iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["pod.apiVersion: Required value: must not be empty"]);
}
