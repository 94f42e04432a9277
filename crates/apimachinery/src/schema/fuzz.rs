//! Laws that hold for any input whatever: nothing panics, and what was fitted, defaulted or decoded once is not changed again.

use crate::schema::decode::Duplicates;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{FieldValidation, Schema, Shape, TypeId, builtin, check, compile_crd_schema, decode, default, validate};
use crate::field::Path;
use crate::resource;

/// Any JSON, of scalars that are often nearly right.
fn any_json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "a",
            "TCP",
            "1Gi",
            "-1",
            "25%",
            "2024-01-02T03:04:05Z",
            "aGk=",
            "a/b/c",
            "*",
            "10.0.0.1",
            "é\u{0}",
        ])
        .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// A value of a type, more or less: choices are taken from `dice`, and some are wrong on purpose.
fn shaped(schema: &Schema, id: TypeId, dice: &mut Dice<'_>, depth: usize) -> Value {
    if depth > 8 || dice.one_in(40) {
        return dice.noise();
    }
    match &schema.get(id).shape {
        Shape::Object(object) => {
            let mut map = Map::new();
            for field in &object.fields {
                if field.required || dice.one_in(3) {
                    map.insert(field.name.to_string(), shaped(schema, field.ty, dice, depth + 1));
                }
            }
            if dice.one_in(12) {
                map.insert("unknown".into(), dice.noise());
            }
            Value::Object(map)
        }
        Shape::Map { value, .. } => (0..dice.below(3))
            .map(|i| (format!("k{i}"), shaped(schema, *value, dice, depth + 1)))
            .collect::<Map<_, _>>()
            .into(),
        Shape::List(list) => (0..dice.below(3)).map(|_| shaped(schema, list.item, dice, depth + 1)).collect(),
        _ => dice.noise(),
    }
}

struct Dice<'a> {
    rolls: std::iter::Cycle<std::slice::Iter<'a, u16>>,
    noise: std::iter::Cycle<std::slice::Iter<'a, Value>>,
}

impl Dice<'_> {
    fn below(&mut self, n: u16) -> u16 {
        self.rolls.next().copied().unwrap_or(0) % n
    }

    fn one_in(&mut self, n: u16) -> bool {
        self.below(n) == 0
    }

    fn noise(&mut self) -> Value {
        self.noise.next().cloned().unwrap_or_default()
    }
}

/// Everything that a write does to a value of `root`; what comes out of the first round must come out of the second.
fn write(schema: &Schema, root: TypeId, value: &Value) {
    let mut fitted = value.clone();
    if check(schema, root, &mut fitted, &Duplicates::default(), FieldValidation::Warn).is_err() {
        let mut value = value.clone();
        default(schema, root, &mut value);
        validate(schema, root, &value);
        return;
    }
    let mut again = fitted.clone();
    let checked =
        check(schema, root, &mut again, &Duplicates::default(), FieldValidation::Strict).expect("a fitted value fits");
    assert_eq!((&again, checked.warnings.len()), (&fitted, 0), "checking twice is checking once");
    check::prune(schema, root, &mut again);
    assert_eq!(again, fitted, "nothing is left to prune");
    default(schema, root, &mut again);
    let defaulted = again.clone();
    default(schema, root, &mut again);
    assert_eq!(again, defaulted, "defaulting twice is defaulting once");
    check(schema, root, &mut again, &Duplicates::default(), FieldValidation::Strict).expect("defaults fit");
    validate(schema, root, &again);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn writes_of_built_in_kinds(
        row in 0..resource::builtin().rows().count(),
        rolls in prop::collection::vec(any::<u16>(), 64..256),
        noise in prop::collection::vec(any_json(), 8..24),
    ) {
        let row = resource::builtin().rows().nth(row).unwrap();
        let mut dice = Dice { rolls: rolls.iter().cycle(), noise: noise.iter().cycle() };
        let value = shaped(&row.schema, row.root, &mut dice, 0);
        write(&row.schema, row.root, &value);
        write(&row.schema, row.root, &noise[0]);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[-:{}\\[\\],\"a0 \n]{0,48}") {
        for body in [&bytes[..], text.as_bytes()] {
            let _ = decode::from_yaml(body);
            if let Ok(decoded) = decode::from_json(body) {
                prop_assert_eq!(decode::from_json(decoded.value.to_string().as_bytes()).unwrap().value, decoded.value);
            }
        }
    }

    #[test]
    fn any_schema_compiles_or_is_refused(
        kind in prop::sample::select(vec!["object", "array", "string", "integer", "number", "boolean"]),
        keywords in prop::collection::vec((prop::sample::select(vec![
            "type", "properties", "items", "additionalProperties", "default", "enum", "pattern", "minimum", "required", "nullable",
            "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-int-or-string", "x-kubernetes-embedded-resource", "format",
        ]), any_json()), 0..5),
        value in any_json(),
    ) {
        let mut property = json!({"type": kind, "items": {"type": "string"}});
        for (keyword, value) in keywords {
            property[keyword] = value;
        }
        let source = json!({"type": "object", "properties": {"a": property}});
        if let Ok((schema, root)) = compile_crd_schema(&source, &Path::root()) {
            let mut object = json!({ "a": value });
            if check(&schema, root, &mut object, &Duplicates::default(), FieldValidation::Ignore).is_ok() {
                default(&schema, root, &mut object);
                validate(&schema, root, &object);
            }
        }
    }
}

#[test]
fn nesting_is_bounded_where_it_was_not_decoded() {
    let schema = builtin();
    let root = schema.by_name("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    let mut value = json!({"type": "string"});
    for _ in 0..300 {
        value = json!({"not": value});
    }
    assert!(check(schema, root, &mut value.clone(), &Duplicates::default(), FieldValidation::Strict).is_err());
    default(schema, root, &mut value);
    validate(schema, root, &value);
    assert!(
        compile_crd_schema(&json!({"type": "object", "properties": {"a": nested_items(300)}}), &Path::root()).is_err()
    );
}

fn nested_items(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}))
}
