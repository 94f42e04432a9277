//! Does a decoded value fit its type? The schema's answer to what typed decoding does in Go: unknown fields are reported and
//! dropped, mismatches refused, nulls removed, times and quantities brought to their canonical form.
//!
//! Knows nothing of defaults and of what values mean; that is [`super::default`] and [`super::validate`].

use std::fmt::{self, Write as _};

use serde_json::Value;

use super::decode::Duplicates;
use super::{MAX_DEPTH, Object, Scalar, Schema, Shape, TypeId, scalar};
use crate::quantity;

/// The request parameter `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// `None` for a value that upstream refuses. An absent parameter means `Warn`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            "Ignore" => Some(Self::Ignore),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// One `Warning` header each: `unknown field "spec.foo"`, `duplicate field "spec.x"`. Empty unless mode is `Warn`.
    pub warnings: Vec<String>,
}

/// Why a value is refused. Its text is what upstream puts after `… cannot be handled as a Deployment: `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// A value of the wrong type or syntax, in the words of Go's decoding.
    #[error("{0}")]
    Mismatch(String),
    /// Field validation in strict mode.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// As many unknown and duplicate fields as upstream reports.
const MAX_REPORTED: usize = 100;

/// Fits `value` to the type `root`, in place. `duplicates` are those that decoding found.
///
/// Complaints come in the order of the document where it has duplicates, and in that of the keys where it has none.
pub fn check(
    schema: &Schema,
    root: TypeId,
    value: &mut Value,
    duplicates: &Duplicates,
    mode: FieldValidation,
) -> Result<Checked, CheckError> {
    let mut checker = Checker { schema, unknown: Vec::new(), report: mode != FieldValidation::Ignore };
    checker.value(root, value, &Place::ROOT).map_err(CheckError::Mismatch)?;
    if !checker.report {
        return Ok(Checked::default());
    }
    let twice = duplicates.of_json().iter().take(MAX_REPORTED).map(|path| (path, "duplicate"));
    let unknown = checker.unknown.iter().map(|path| (path, "unknown"));
    // Custom resources are looked through for unknown fields after they were decoded.
    let custom = schema.get(root).structural;
    let mut complaints: Vec<_> = twice.chain(unknown).collect();
    complaints.sort_by_key(|(path, _)| if custom { 0 } else { duplicates.place(path) });
    let fields = complaints.iter().map(|(path, what)| format!("{what} field {path:?}"));
    match mode {
        FieldValidation::Strict => {
            let all: Vec<String> = duplicates.yaml_error().into_iter().chain(fields).collect();
            if all.is_empty() { Ok(Checked::default()) } else { Err(CheckError::Strict(all)) }
        }
        _ => Ok(Checked { warnings: duplicates.of_yaml().into_iter().chain(fields).collect() }),
    }
}

/// Drops fields that the schema does not know, silently.
pub fn prune(schema: &Schema, root: TypeId, value: &mut Value) {
    Pruner { schema }.value(root, value, 0);
}

/// Where the walk is, linked through the stack so that paths are built for reports only.
struct Place<'a> {
    parent: Option<&'a Place<'a>>,
    step: Step<'a>,
    depth: usize,
    /// The definition whose field this is in, as Go names it in mismatches.
    owner: &'a str,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    /// A map key: part of an unknown field's path, but not of Go's field path.
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    const ROOT: Place<'static> = Place { parent: None, step: Step::Root, depth: 0, owner: "" };

    fn step(&'a self, step: Step<'a>) -> Place<'a> {
        Place { parent: Some(self), step, depth: self.depth + 1, owner: self.owner }
    }

    fn write(&self, out: &mut String, go: bool) {
        if let Some(parent) = self.parent {
            parent.write(out, go);
        }
        match self.step {
            Step::Root => {}
            Step::Key(_) | Step::Index(_) if go => {}
            Step::Field(name) | Step::Key(name) => {
                let dot = if out.is_empty() { "" } else { "." };
                let _ = write!(out, "{dot}{name}");
            }
            Step::Index(index) => _ = write!(out, "[{index}]"),
        }
    }

    /// `spec.containers[0].image`
    fn path(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, false);
        out
    }

    /// `spec.containers.image`, as Go's UnmarshalTypeError has it.
    fn go_field(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, true);
        out
    }

    fn mismatch(&self, found: impl fmt::Display, wanted: impl fmt::Display) -> String {
        let field = self.go_field();
        if field.is_empty() {
            return format!("json: cannot unmarshal {found} into Go value of type {wanted}");
        }
        format!("json: cannot unmarshal {found} into Go struct field {}.{field} of type {wanted}", self.owner)
    }
}

/// A JSON value's kind as Go names it.
fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `v1.PodSpec` of `io.k8s.api.core.v1.PodSpec`, and `PodSpec` alone.
fn go_names(definition: &str) -> (&str, &str) {
    let name = definition.rfind('.').map_or(0, |dot| dot + 1);
    let package = definition[..name.saturating_sub(1)].rfind('.').map_or(0, |dot| dot + 1);
    (&definition[package..], &definition[name..])
}

struct Checker<'s> {
    schema: &'s Schema,
    /// Paths.
    unknown: Vec<String>,
    report: bool,
}

impl<'s> Checker<'s> {
    /// True for types whose mismatches are validation's to report: those that a CustomResourceDefinition wrote.
    fn lenient(&self, id: TypeId) -> bool {
        self.schema.get(id).structural
    }

    fn value(&mut self, id: TypeId, value: &mut Value, place: &Place<'_>) -> Result<(), String> {
        if place.depth > MAX_DEPTH {
            return Err("exceeded max depth".into());
        }
        let schema = self.schema;
        let ty = schema.get(id);
        match (&ty.shape, &mut *value) {
            (Shape::Any, _) | (_, Value::Null) => Ok(()),
            (Shape::Object(object), Value::Object(_)) => {
                let owner = if ty.name.is_empty() { place.owner } else { go_names(&ty.name).1 };
                let place = Place { parent: place.parent, step: place.step, depth: place.depth, owner };
                self.object(object, value, &place)
            }
            (Shape::Map { value: ty, .. }, Value::Object(map)) => {
                if self.lenient(*ty) && !schema.get(*ty).nullable {
                    map.retain(|_, value| !value.is_null());
                }
                for (key, value) in map {
                    self.element(*ty, value, &place.step(Step::Key(key)))?;
                }
                Ok(())
            }
            (Shape::List(list), Value::Array(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.element(list.item, item, &place.step(Step::Index(index)))?;
                }
                Ok(())
            }
            _ if self.lenient(id) => Ok(()),
            (Shape::Scalar(kind), _) => fit_scalar(*kind, value, place),
            (_, other) => Err(place.mismatch(found(other), self.go_type(id))),
        }
    }

    /// A map's value or a list's item: null stands for the zero value there.
    fn element(&mut self, id: TypeId, value: &mut Value, place: &Place<'_>) -> Result<(), String> {
        if value.is_null()
            && !self.lenient(id)
            && let Some(zero) = self.zero(id)
        {
            *value = zero;
        }
        self.value(id, value, place)
    }

    fn zero(&self, id: TypeId) -> Option<Value> {
        Some(match &self.schema.get(id).shape {
            Shape::Object(_) => Value::Object(serde_json::Map::new()),
            Shape::Scalar(Scalar::String | Scalar::Bytes) => Value::String(String::new()),
            Shape::Scalar(Scalar::Quantity) => Value::String("0".into()),
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString) => Value::from(0),
            Shape::Scalar(Scalar::Bool) => Value::Bool(false),
            _ => return None,
        })
    }

    fn object(&mut self, object: &'s Object, value: &mut Value, place: &Place<'_>) -> Result<(), String> {
        let Value::Object(map) = value else { return Ok(()) };
        let mut dropped = false;
        for (key, value) in map.iter_mut() {
            match object.field(key) {
                // Null means absent, unless an author said otherwise.
                Some(field) if value.is_null() => dropped |= !field.nullable,
                Some(field) => self.value(field.ty, value, &place.step(Step::Field(&field.name)))?,
                None if object.additional.is_some() => {
                    let Some(ty) = object.additional else { continue };
                    self.element(ty, value, &place.step(Step::Key(key)))?;
                }
                None if object.embedded && is_embedded_field(key) => {}
                None if object.preserve_unknown => {}
                None => {
                    dropped = true;
                    if self.report && self.unknown.len() < MAX_REPORTED {
                        self.unknown.push(place.step(Step::Key(key)).path());
                    }
                }
            }
        }
        if dropped {
            let keeps = |key: &str| object.preserve_unknown || (object.embedded && is_embedded_field(key));
            map.retain(|key, value| match object.field(key) {
                Some(field) => !value.is_null() || field.nullable,
                None => object.additional.is_some() || keeps(key),
            });
        }
        Ok(())
    }

    /// The Go type that a mismatch names.
    fn go_type(&self, id: TypeId) -> String {
        let ty = self.schema.get(id);
        match &ty.shape {
            Shape::List(list) => format!("[]{}", self.go_type(list.item)),
            Shape::Map { value, .. } => match &self.schema.get(*value).shape {
                Shape::Scalar(Scalar::Quantity) => "v1.ResourceList".into(),
                Shape::Scalar(Scalar::Bytes) => "map[string][]uint8".into(),
                _ => format!("map[string]{}", self.go_type(*value)),
            },
            Shape::Object(_) if ty.name.is_empty() => "map[string]interface {}".into(),
            Shape::Object(_) => go_names(&ty.name).0.into(),
            Shape::Scalar(kind) => go_scalar(*kind).into(),
            Shape::Any => "interface {}".into(),
        }
    }
}

fn is_embedded_field(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

fn go_scalar(kind: Scalar) -> &'static str {
    match kind {
        Scalar::String => "string",
        Scalar::Bytes => "[]uint8",
        Scalar::Bool => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Double => "float64",
        Scalar::Time => "v1.Time",
        Scalar::MicroTime => "v1.MicroTime",
        Scalar::Quantity => "resource.Quantity",
        Scalar::IntOrString => "intstr.IntOrString",
    }
}

fn fit_scalar(kind: Scalar, value: &mut Value, place: &Place<'_>) -> Result<(), String> {
    let bare = |found: &dyn fmt::Display, wanted: &str| {
        format!("json: cannot unmarshal {found} into Go value of type {wanted}")
    };
    match (kind, &mut *value) {
        (Scalar::String, Value::String(_)) | (Scalar::Bool, Value::Bool(_)) | (Scalar::Double, Value::Number(_)) => {}
        (Scalar::Int32 | Scalar::Int64, Value::Number(number)) => {
            let fits = number.as_i64().is_some_and(|n| kind == Scalar::Int64 || i32::try_from(n).is_ok());
            if !fits {
                return Err(place.mismatch(format_args!("number {number}"), go_scalar(kind)));
            }
        }
        (Scalar::IntOrString, Value::String(_)) => {}
        (Scalar::IntOrString, Value::Number(number)) => {
            if number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) {
                return Err(bare(&format_args!("number {number}"), "int32"));
            }
        }
        (Scalar::IntOrString, other) => return Err(bare(&found(other), "int32")),
        (Scalar::Bytes, Value::String(text)) => scalar::base64(text)?,
        (Scalar::Time, Value::String(text)) => replace(text, scalar::time)?,
        (Scalar::MicroTime, Value::String(text)) => replace(text, scalar::micro_time)?,
        (Scalar::Time | Scalar::MicroTime, other) => return Err(bare(&found(other), "string")),
        (Scalar::Quantity, Value::String(text)) => replace(text, canonical_quantity)?,
        (Scalar::Quantity, Value::Number(number)) => *value = Value::String(canonical_quantity(&number.to_string())?),
        (Scalar::Quantity, other) => {
            return Err(canonical_quantity(&other.to_string()).err().unwrap_or_default());
        }
        (_, other) => return Err(place.mismatch(found(other), go_scalar(kind))),
    }
    Ok(())
}

/// Writes the canonical form, without an allocation kept where it is canonical already.
fn replace(text: &mut String, canonical: fn(&str) -> Result<String, String>) -> Result<(), String> {
    let fitted = canonical(text)?;
    if *text != fitted {
        *text = fitted;
    }
    Ok(())
}

fn canonical_quantity(text: &str) -> Result<String, String> {
    quantity::canonical(text.trim()).map(Into::into).map_err(|e| e.to_string())
}

struct Pruner<'s> {
    schema: &'s Schema,
}

impl Pruner<'_> {
    fn value(&self, id: TypeId, value: &mut Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match (&self.schema.get(id).shape, value) {
            (Shape::Object(object), Value::Object(map)) => {
                let embedded = |key: &str| object.embedded && is_embedded_field(key);
                let open = object.preserve_unknown || object.additional.is_some();
                map.retain(|key, _| open || embedded(key) || object.field(key).is_some());
                for (key, value) in map {
                    if let Some(ty) = object.field(key).map(|f| f.ty).or(object.additional) {
                        self.value(ty, value, depth + 1);
                    }
                }
            }
            (Shape::Map { value: ty, .. }, Value::Object(map)) => {
                map.values_mut().for_each(|value| self.value(*ty, value, depth + 1));
            }
            (Shape::List(list), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.value(list.item, item, depth + 1));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn run(kind: &str, value: Value, mode: FieldValidation) -> Result<(Value, Vec<String>), String> {
        let schema = builtin();
        let root = schema.by_name(&format!("io.k8s.api.{kind}")).unwrap();
        let mut value = value;
        let checked = check(schema, root, &mut value, &Duplicates::default(), mode).map_err(|e| e.to_string())?;
        Ok((value, checked.warnings))
    }

    fn strict(kind: &str, value: Value) -> Result<Value, String> {
        run(kind, value, FieldValidation::Strict).map(|(value, _)| value)
    }

    #[test]
    fn mismatches_are_worded_as_go_does() {
        let cases = [
            (
                "apps.v1.Deployment",
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "core.v1.Pod",
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "apps.v1.Deployment",
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"containers": [{"env": [{"name": "A", "value": 1}]}]}}),
                "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
            ),
            ("core.v1.Pod", json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
            (
                "core.v1.Pod",
                json!({"spec": "x"}),
                "json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"priority": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                "core.v1.Pod",
                json!({"spec": {"priority": 3_000_000_000u64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            ("core.v1.Secret", json!({"data": {"a": "!"}}), "illegal base64 data at input byte 0"),
            (
                "core.v1.Pod",
                json!({"metadata": {"creationTimestamp": "now"}}),
                "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
            ),
            (
                "core.v1.Service",
                json!({"spec": {"ports": [{"targetPort": true}]}}),
                "json: cannot unmarshal bool into Go value of type int32",
            ),
        ];
        for (kind, value, expected) in cases {
            assert_eq!(strict(kind, value), Err(expected.to_owned()));
        }
    }

    #[test]
    fn unknown_fields_are_reported_and_dropped() {
        let pod = json!({"foo": 1, "spec": {"containers": [{"name": "a", "imag": "x"}], "bar": {}}});
        let report =
            ["unknown field \"foo\"", "unknown field \"spec.bar\"", "unknown field \"spec.containers[0].imag\""];
        assert_eq!(strict("core.v1.Pod", pod.clone()), Err(format!("strict decoding error: {}", report.join(", "))));
        let fitted = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(
            run("core.v1.Pod", pod.clone(), FieldValidation::Warn),
            Ok((fitted.clone(), report.iter().map(ToString::to_string).collect()))
        );
        assert_eq!(run("core.v1.Pod", pod, FieldValidation::Ignore), Ok((fitted, vec![])));
    }

    /// What strict validation says of a Pod that is read from `decoded`.
    fn complaints(decoded: Result<decode::Decoded, decode::DecodeError>) -> String {
        let schema = builtin();
        let root = schema.by_kind("", "v1", "Pod").unwrap();
        let mut decoded = decoded.unwrap();
        let refused = check(schema, root, &mut decoded.value, &decoded.duplicates, FieldValidation::Strict);
        refused.unwrap_err().to_string()
    }

    #[test]
    fn complaints_come_in_the_order_of_the_document() {
        let body = br#"{"spec": {"x": 1, "hostname": "a", "hostname": "b", "b": 1}, "a": 1}"#;
        assert_eq!(
            complaints(decode::from_json(body)),
            "strict decoding error: unknown field \"spec.x\", duplicate field \"spec.hostname\", unknown field \"spec.b\", unknown field \"a\""
        );
    }

    #[test]
    fn a_key_twice_in_yaml_is_the_readers_complaint() {
        let body = b"spec:\n  x: 1\n  hostname: a\n  hostname: b\nx: 1\nx: 2\n";
        assert_eq!(
            complaints(decode::from_yaml(body)),
            "strict decoding error: error converting YAML to JSON: yaml: unmarshal errors:\n  line 4: key \"hostname\" already set in map\n  \
             line 6: key \"x\" already set in map, unknown field \"spec.x\", unknown field \"x\""
        );
    }

    #[test]
    fn values_take_their_canonical_form() {
        let pod = json!({
            "metadata": {"creationTimestamp": null, "labels": {"a": null}, "deletionTimestamp": "2024-01-02T03:04:05.6+01:00"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": 0.5, "memory": "1024Ki"}}}], "volumes": null},
        });
        let fitted = json!({
            "metadata": {"labels": {"a": ""}, "deletionTimestamp": "2024-01-02T02:04:05Z"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Mi"}}}]},
        });
        assert_eq!(strict("core.v1.Pod", pod), Ok(fitted));
        let refused = strict("core.v1.Pod", json!({"spec": {"overhead": {"cpu": "1x"}}})).unwrap_err();
        assert!(refused.contains("quantit"), "{refused}");
    }

    #[test]
    fn free_form_values_are_left_alone() {
        let revision = json!({"data": {"a": null, "b": [1, {"c": null}]}, "revision": 1});
        assert_eq!(strict("apps.v1.ControllerRevision", revision.clone()), Ok(revision));
    }
}
