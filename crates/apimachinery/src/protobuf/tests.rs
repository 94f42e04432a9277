//! What is written is read again as it was, and what upstream wrote is read as upstream reads it.

use super::encode::{List, Root, watch_frame};
use super::*;
use proptest::prelude::*;

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    out.extend_from_slice(content);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[test]
fn a_deployment_with_zeros() {
    let labels = field(1, &[field(1, b"app"), field(2, b"web")].concat());
    let metadata = field(1, &[field(1, b"web"), field(3, b"")].concat());
    // replicas: 0 is a pointer's value, minReadySeconds: 0 and paused: false are Go's zeros.
    let spec = field(2, &[vec![1 << 3, 0], field(2, &labels), vec![5 << 3, 0], vec![7 << 3, 0]].concat());
    let bytes = envelope("apps/v1", "Deployment", &[metadata, spec].concat());
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}},
    });
    assert_eq!(decode(&bytes).unwrap(), expected);
}

#[test]
fn embedded_messages_are_not_shown() {
    let source = field(2, &field(2, &field(1, b"Memory")));
    let volume = field(1, &[field(1, b"v"), source].concat());
    let bytes = envelope("v1", "Pod", &field(2, &volume));
    assert_eq!(decode(&bytes).unwrap()["spec"]["volumes"], json!([{"name": "v", "emptyDir": {"medium": "Memory"}}]));
}

#[test]
fn types_whose_names_have_capitals_are_known() {
    let port = |words: &[u8]| field(2, words);
    let by_number = field(2, &port(&[1 << 3, 0, 2 << 3, 0x90, 0x3f]));
    let by_name = field(2, &port(&[&[1 << 3, 1][..], &field(3, b"web")].concat()));
    let probe = |handler: &[u8]| field(1, handler);
    let container = [field(1, b"c"), field(10, &probe(&by_number)), field(11, &probe(&by_name))].concat();
    let bytes = envelope("v1", "Pod", &field(2, &field(2, &container)));
    let pod = decode(&bytes).unwrap();
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"port": 8080}));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"port": "web"}));
}

#[test]
fn every_stored_kind_has_numbers() {
    let missing: Vec<String> = crate::resource::builtin()
        .rows()
        .filter(|row| !tables().messages.contains_key(&*row.schema.get(row.root).name))
        .map(|row| format!("{}/{}", row.api_version(), row.kind))
        .collect();
    assert_eq!(missing, [""; 0]);
}

proptest! {
    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode(&envelope("v1", "Pod", &bytes[..bytes.len().min(100)]));
    }
}

/// A value of a type with nothing wrong in it. `dice` decides which fields there are; without it all are.
struct Whole<'a> {
    schema: &'a Schema,
    dice: Option<std::iter::Cycle<std::slice::Iter<'a, u8>>>,
}

impl Whole<'_> {
    fn roll(&mut self) -> u8 {
        self.dice.as_mut().and_then(Iterator::next).copied().unwrap_or(0)
    }

    fn object(&mut self, id: TypeId, depth: usize) -> Value {
        let ty = self.schema.get(id);
        let Shape::Object(object) = &ty.shape else { panic!("{} has no fields", ty.name) };
        // A type without fields has no numbers either.
        let numbers = tables().paths.get(&*ty.name);
        let mut map = Map::new();
        for field in object.fields.iter().filter(|f| numbers.is_some_and(|n| n.contains_key(&*f.name))) {
            if self.roll().is_multiple_of(3)
                && let Some(value) = self.value(field.ty, depth + 1)
            {
                map.insert(field.name.to_string(), value);
            }
        }
        Value::Object(map)
    }

    fn value(&mut self, id: TypeId, depth: usize) -> Option<Value> {
        let ty = self.schema.get(id);
        let n = self.roll();
        Some(match &ty.shape {
            Shape::Object(_) if depth > 9 => return None,
            Shape::Object(_) => self.object(id, depth),
            Shape::Map { value, .. } => {
                let items: Map<_, _> =
                    (0..=n % 2).filter_map(|i| Some((format!("k{i}"), self.value(*value, depth + 1)?))).collect();
                return (!items.is_empty()).then_some(Value::Object(items));
            }
            Shape::List(list) => {
                let items: Vec<_> = (0..=n % 2).filter_map(|_| self.value(list.item, depth + 1)).collect();
                return (!items.is_empty()).then_some(Value::Array(items));
            }
            Shape::Any => match ty.name.rsplit('.').next().unwrap() {
                "JSONSchemaPropsOrBool" if n.is_multiple_of(2) => json!(n.is_multiple_of(4)),
                "JSONSchemaPropsOrArray" if n.is_multiple_of(2) => json!([{"type": "string"}, {}]),
                "JSONSchemaPropsOrStringArray" if n.is_multiple_of(2) => json!(["a", ""]),
                name if name.starts_with("JSONSchemaProps") => json!({"type": "string", "maxLength": 0}),
                _ if n.is_multiple_of(2) => json!({"a": [1, "\u{e9}\"", null, 1.5], "b": {}}),
                _ => [json!(0), json!(false), json!("")][usize::from(n) % 3].clone(),
            },
            Shape::Scalar(scalar) => match scalar {
                Scalar::String => json!(format!("text \u{e9} \"{n}\"")),
                Scalar::Bytes => json!(STANDARD.encode([n, 0, 255])),
                Scalar::Time => json!("2024-01-02T03:04:05Z"),
                Scalar::MicroTime => json!("2024-01-02T03:04:05.000006Z"),
                Scalar::Quantity => json!(format!("{n}Gi")),
                Scalar::IntOrString if n.is_multiple_of(2) => json!(i64::from(n) - 7),
                Scalar::IntOrString => json!("25%"),
                Scalar::Bool => json!(true),
                Scalar::Int32 => json!(i64::from(n) - 1000),
                Scalar::Int64 => json!(i64::from(n) - (1 << 40)),
                Scalar::Double => json!(f64::from(n) + 0.5),
            },
        })
    }
}

/// Through the encoding and back.
fn there_and_back(row: &crate::resource::ResourceRow, value: &Value) {
    let (api_version, root) = (row.api_version(), Root::of_type(row.root).unwrap());
    let bytes = encode::object(root, &api_version, &row.kind, value.to_string().as_bytes()).unwrap();
    let mut back = decode(&bytes).unwrap();
    assert_eq!((&back["apiVersion"], &back["kind"]), (&json!(api_version), &json!(row.kind)));
    let map = back.as_object_mut().unwrap();
    map.remove("apiVersion");
    map.remove("kind");
    assert_eq!(first_difference(&back, value, ""), None, "{api_version} {}", row.kind);
}

/// Where two values differ first, and how: a whole object is more than anybody reads.
fn first_difference(a: &Value, b: &Value, path: &str) -> Option<String> {
    let told = || Some(format!("{path}: {a} in place of {b}"));
    match (a, b) {
        (Value::Object(x), Value::Object(y)) if x.keys().eq(y.keys()) => {
            x.iter().find_map(|(key, value)| first_difference(value, &y[key], &format!("{path}.{key}")))
        }
        (Value::Object(x), Value::Object(y)) => {
            let only = |x: &Map<String, Value>, y: &Map<String, Value>| {
                x.iter().filter(|(key, _)| !y.contains_key(*key)).map(|(k, v)| format!("{k}: {v} ")).collect::<String>()
            };
            Some(format!("{path}: has {{{}}} too many and {{{}}} too few", only(x, y), only(y, x)))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let items = x.iter().zip(y).enumerate();
            items.map(|(i, (x, y))| first_difference(x, y, &format!("{path}[{i}]"))).find_map(|found| found)
        }
        _ if a == b => None,
        _ => told(),
    }
}

#[test]
fn every_field_of_every_kind_comes_back() {
    for row in crate::resource::builtin().rows() {
        let value = Whole { schema: &row.schema, dice: None }.object(row.root, 0);
        there_and_back(row, &value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again(
        row in 0..crate::resource::builtin().rows().count(),
        rolls in proptest::collection::vec(any::<u8>(), 64..512),
    ) {
        let row = crate::resource::builtin().rows().nth(row).unwrap();
        let value = Whole { schema: &row.schema, dice: Some(rolls.iter().cycle()) }.object(row.root, 0);
        there_and_back(row, &value);
    }
}

#[test]
fn what_is_said_of_a_schema_is_kept_even_if_it_is_false_or_nothing() {
    let schema = json!({"additionalProperties": false, "properties": {"a": {"default": 0, "example": false, "type": "integer"}}});
    let version = json!({"name": "v1", "schema": {"openAPIV3Schema": schema}});
    let definition = json!({"spec": {"group": "example.com", "versions": [version]}});
    let row = crate::resource::builtin().rows().find(|row| &*row.kind == "CustomResourceDefinition");
    there_and_back(row.unwrap(), &definition);
}

#[test]
fn lists_metadata_statuses_and_frames() {
    let pod =
        |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": "n"}});
    let root = Root::of_kind("v1", "Pod").unwrap();
    let mut list = List::default();
    for name in ["a", "b"] {
        list.push(root, pod(name).to_string().as_bytes()).unwrap();
    }
    let [head, tail] = list.ends("v1", "PodList", r#"{"resourceVersion":"7","remainingItemCount":2}"#).unwrap();
    let bare = |name: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": "n"}});
    assert_eq!(
        decode(&[head, list.items, tail].concat()).unwrap(),
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7", "remainingItemCount": 2}, "items": [bare("a"), bare("b")]})
    );
    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404, "details": {"causes": [{"reason": "x"}]}});
    assert_eq!(decode(&encode::value(&status).unwrap()).unwrap(), status);

    // Metadata is field 1 of a message whose envelope names another kind, and nothing else is in it.
    let bytes =
        encode::object(Root::Metadata, "meta.k8s.io/v1", "PartialObjectMetadata", pod("a").to_string().as_bytes());
    let metadata = field(1, &field(1, b"a"));
    let ends = [field(3, b""), field(4, b"")].concat();
    let expected = [envelope("meta.k8s.io/v1", "PartialObjectMetadata", &metadata), ends].concat();
    assert_eq!(bytes.unwrap(), expected);

    let mut frame = vec![9];
    watch_frame("ADDED", b"object", &mut frame);
    let event = [field(1, b"ADDED"), field(2, &field(1, b"object"))].concat();
    assert_eq!(frame, [&[9, 0, 0, 0, u8::try_from(event.len()).unwrap()][..], &event].concat());
}

#[test]
fn messages_that_json_does_not_show_are_written_once() {
    let rule = json!({"apiGroups": ["g"], "operations": ["CREATE"], "resources": ["r"], "scope": "*"});
    let webhooks = json!({"webhooks": [{"name": "w", "rules": [rule]}]});
    let root = Root::of_kind("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration").unwrap();
    let bytes = encode::object(root, "a", "K", webhooks.to_string().as_bytes()).unwrap();
    let inner = [field(1, b"g"), field(3, b"r"), field(4, b"*")].concat();
    let rule = [field(1, b"CREATE"), field(2, &inner)].concat();
    let webhook = [field(1, b"w"), field(3, &rule)].concat();
    let expected = [envelope("a", "K", &field(2, &webhook)), field(3, b""), field(4, b"")].concat();
    assert_eq!(bytes, expected);
}

#[test]
fn lengths_beyond_a_byte_move_what_they_tell_of() {
    for length in [0, 1, 100, 127, 128, 300, 16_383, 16_384, 3_000_000] {
        let text = "x".repeat(length);
        let value = json!({"metadata": {"annotations": {"a": text}}});
        let bytes = encode::object(Root::of_kind("v1", "Pod").unwrap(), "v1", "Pod", value.to_string().as_bytes());
        assert_eq!(decode(&bytes.unwrap()).unwrap()["metadata"], value["metadata"], "{length}");
    }
}

#[test]
fn a_kind_without_a_form_is_told() {
    let error = encode::value(&json!({"apiVersion": "example.com/v1", "kind": "Widget"})).unwrap_err();
    assert!(matches!(error, encode::EncodeError::Unknown { .. }), "{error}");
    assert!(Root::of_kind("v1", "Widget").is_none());
}

/// Upstream's own encodings: the files `*.pb` and `*.json` of kubernetes/api, `testdata/HEAD`, in the folder that
/// `KUBERNETES_API_TESTDATA` names. Every field of every kind is set in them.
#[test]
#[ignore = "needs upstream's files"]
fn upstreams_files_mean_the_same() {
    let folder = std::env::var("KUBERNETES_API_TESTDATA").expect("KUBERNETES_API_TESTDATA names the folder");
    let mut compared = 0;
    for row in crate::resource::builtin().rows() {
        let group = if row.group.is_empty() { "core" } else { &*row.group };
        let path = format!("{folder}/{group}.{}.{}", row.version, row.kind);
        let (Ok(pb), Ok(json)) = (std::fs::read(format!("{path}.pb")), std::fs::read(format!("{path}.json"))) else {
            continue;
        };
        let json: Value = serde_json::from_slice(&json).unwrap();
        let wanted = known(&row.schema, row.root, &json);
        let of_bytes = decode(&pb).unwrap();
        assert_eq!(of_bytes, wanted, "reading {path}.pb");
        let root = Root::of_type(row.root).unwrap();
        let ours = encode::object(root, &row.api_version(), &row.kind, json.to_string().as_bytes()).unwrap();
        assert_eq!(decode(&ours).unwrap(), wanted, "writing {path}");
        if known(&row.schema, row.root, &json).to_string().len() == json.to_string().len() {
            assert_eq!(ours.len(), pb.len(), "bytes of {path}");
        }
        compared += 1;
    }
    println!("{compared} kinds compared");
    assert!(compared > 50, "only {compared} kinds found in {folder}");
}

/// `value` without what has no number here.
fn known(schema: &Schema, id: TypeId, value: &Value) -> Value {
    let ty = schema.get(id);
    match (&ty.shape, value) {
        (Shape::Object(object), Value::Object(map)) => {
            let numbers = tables().paths.get(&*ty.name);
            let of_root = |name: &str| matches!(name, "apiVersion" | "kind") && !ty.gvks.is_empty();
            map.iter()
                .filter(|(name, _)| numbers.is_some_and(|n| n.contains_key(name.as_str())) || of_root(name))
                .filter_map(|(name, value)| Some((name.clone(), known(schema, object.field(name)?.ty, value))))
                .filter(|(_, value)| !value.is_null())
                .collect::<Map<_, _>>()
                .into()
        }
        (Shape::Map { value: ty, .. }, Value::Object(map)) => {
            map.iter().map(|(key, value)| (key.clone(), known(schema, *ty, value))).collect::<Map<_, _>>().into()
        }
        (Shape::List(list), Value::Array(items)) => items.iter().map(|item| known(schema, list.item, item)).collect(),
        _ => value.clone(),
    }
}
