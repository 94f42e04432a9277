//! Compiles the structural schema of a CustomResourceDefinition's version into a [`Schema`].
//!
//! Accepts and refuses what upstream's `apiextensions-apiserver/pkg/apiserver/schema` does for structure, in its words. CEL rules
//! (`x-kubernetes-validations`) are not compiled here.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{
    Field, Junction, List, ListKind, MAX_DEPTH, Object, Pattern, Rule, Scalar, Schema, Shape, Type, TypeId, builtin,
    validate,
};
use crate::field::{Error, ErrorList, Path};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema whose root is `openapi_v3_schema`, with `apiVersion`, `kind` and `metadata` as every object has them. `path` is where
/// the schema lies in the definition, such as `spec.versions[0].schema.openAPIV3Schema`.
pub fn compile_crd_schema(openapi_v3_schema: &Value, path: &Path) -> Result<(Schema, TypeId), ErrorList> {
    let mut compiler = Compiler::default();
    if openapi_v3_schema["type"].as_str().unwrap_or_default() != "object" {
        let at = path.child("type");
        compiler.errors.push(match &openapi_v3_schema["type"] {
            Value::String(text) if !text.is_empty() => Error::invalid(&at, &json!(text), "must be object at the root"),
            _ => Error::required(&at, "must not be empty at the root"),
        });
        return Err(compiler.errors);
    }
    let root = compiler.compile(openapi_v3_schema, &Place { path, role: Role::Root, depth: 0 });
    if !compiler.errors.is_empty() {
        return Err(compiler.errors);
    }
    let defaults = std::mem::take(&mut compiler.defaults);
    let mut schema = Schema::new(compiler.types);
    schema.structural = true;
    schema.source = Some(openapi_v3_schema.to_string().into());
    let faults: ErrorList =
        defaults.iter().flat_map(|(id, path, value)| validate::validate_at(&schema, *id, value, path)).collect();
    if faults.is_empty() { Ok((schema, root)) } else { Err(faults) }
}

/// What a schema describes, for the wording of what it lacks.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Root,
    Property,
    Items,
    Additional,
    /// Below `allOf`, `anyOf`, `oneOf` or `not`: values are judged, nothing is specified.
    Junction,
}

struct Place<'a> {
    path: &'a Path,
    role: Role,
    depth: usize,
}

#[derive(Default)]
struct Compiler {
    types: Vec<Type>,
    /// Built-in types copied into this arena.
    copied: HashMap<TypeId, TypeId>,
    errors: ErrorList,
    /// Defaults to check against their types once all types are known.
    defaults: Vec<(TypeId, Path, Value)>,
}

impl Compiler {
    fn push(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(u32::try_from(self.types.len() - 1).expect("a schema is smaller than 2^32 types: bodies are bounded"))
    }

    fn compile(&mut self, source: &Value, place: &Place<'_>) -> TypeId {
        if place.depth > MAX_DEPTH {
            self.errors.push(Error::invalid(place.path, &json!("…"), "the schema is nested too deeply"));
            return self.push(Type::inline(Shape::Any));
        }
        self.refuse_unsupported(source, place.path);
        let shape =
            if place.role == Role::Junction { self.judged_shape(source, place) } else { self.shape(source, place) };
        let mut ty = Type::inline(shape);
        ty.structural = true;
        ty.nullable = source["nullable"] == true;
        ty.rules = self.rules(source, place.path);
        self.junctions(source, place, &mut ty.rules);
        let id = self.push(ty);
        if let Some(default) = source.get("default").filter(|v| !v.is_null()) {
            self.defaults.push((id, place.path.child("default"), default.clone()));
        }
        id
    }

    fn refuse_unsupported(&mut self, source: &Value, path: &Path) {
        if source["$ref"].is_string() {
            self.errors.push(Error::forbidden(&path.child("$ref"), "$ref is not supported"));
        }
        for key in ["definitions", "dependencies", "patternProperties"] {
            if source.get(key).is_some_and(|v| !v.is_null()) {
                self.errors.push(Error::forbidden(&path.child(key), &format!("{key} is not supported")));
            }
        }
        if source["uniqueItems"] == true {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.push(Error::forbidden(&path.child("uniqueItems"), detail));
        }
    }

    fn shape(&mut self, source: &Value, place: &Place<'_>) -> Shape {
        let path = place.path;
        let kind = source["type"].as_str().unwrap_or_default();
        let preserve = source["x-kubernetes-preserve-unknown-fields"] == true;
        if source["x-kubernetes-int-or-string"] == true {
            if !kind.is_empty() {
                let detail = "must be empty if x-kubernetes-int-or-string is true";
                self.errors.push(Error::forbidden(&path.child("type"), detail));
            }
            return Shape::Scalar(Scalar::IntOrString);
        }
        match kind {
            "object" => self.object(source, place),
            "array" => self.list(source, place),
            "string" => Shape::Scalar(match source["format"].as_str() {
                Some("byte") => Scalar::Bytes,
                Some("date-time") => Scalar::Time,
                _ => Scalar::String,
            }),
            "boolean" => Shape::Scalar(Scalar::Bool),
            "integer" if source["format"] == "int32" => Shape::Scalar(Scalar::Int32),
            "integer" => Shape::Scalar(Scalar::Int64),
            "number" => Shape::Scalar(Scalar::Double),
            "" if preserve && source["properties"].is_null() => Shape::Any,
            "" if preserve => self.object(source, place),
            "" => {
                let what = match place.role {
                    Role::Items => "array items",
                    Role::Root | Role::Property | Role::Additional | Role::Junction => "object fields",
                };
                let detail = format!("must not be empty for specified {what}");
                self.errors.push(Error::required(&path.child("type"), &detail));
                Shape::Any
            }
            other => {
                let supported = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.push(Error::not_supported(&path.child("type"), &json!(other), &supported));
                Shape::Any
            }
        }
    }

    fn junctions(&mut self, source: &Value, place: &Place<'_>, rules: &mut Vec<Rule>) {
        let kinds =
            [("allOf", Junction::All), ("anyOf", Junction::Any), ("oneOf", Junction::One), ("not", Junction::Not)];
        for (key, junction) in kinds {
            let parts = match &source[key] {
                Value::Array(parts) => parts.as_slice(),
                part @ Value::Object(_) => std::slice::from_ref(part),
                _ => continue,
            };
            let types = parts.iter().enumerate().map(|(i, part)| {
                let path =
                    if junction == Junction::Not { place.path.child(key) } else { place.path.child(key).index(i) };
                self.compile(part, &Place { path: &path, role: Role::Junction, depth: place.depth + 1 })
            });
            let types = types.collect();
            rules.push(Rule::Junction(junction, types));
        }
    }

    /// What a junction's part says of the value's shape: as much as it names, and open to the rest.
    fn judged_shape(&mut self, source: &Value, place: &Place<'_>) -> Shape {
        let inner = |path: &Path, compiler: &mut Self, source: &Value| {
            compiler.compile(source, &Place { path, role: Role::Junction, depth: place.depth + 1 })
        };
        let properties = source["properties"].as_object();
        if properties.is_some() || source["required"].is_array() {
            let mut object = Object { preserve_unknown: true, ..Object::default() };
            let none = Map::new();
            for (name, property) in properties.unwrap_or(&none) {
                let ty = inner(&place.path.child("properties").key(name), self, property);
                object.fields.push(self.field(name, ty, property, source));
            }
            for name in source["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if object.fields.iter().all(|field| *field.name != *name) {
                    let any = self.push(Type::inline(Shape::Any));
                    object.fields.push(Field { required: true, ..Field::new(name, any) });
                }
            }
            object.fields.sort_by(|a, b| a.name.cmp(&b.name));
            return Shape::Object(object);
        }
        if source["items"].is_object() {
            let item = inner(&place.path.child("items"), self, &source["items"]);
            return Shape::List(List { item, kind: ListKind::Atomic });
        }
        match source["type"].as_str() {
            Some("string") => Shape::Scalar(Scalar::String),
            Some("boolean") => Shape::Scalar(Scalar::Bool),
            Some("integer") => Shape::Scalar(Scalar::Int64),
            Some("number") => Shape::Scalar(Scalar::Double),
            _ => Shape::Any,
        }
    }

    fn object(&mut self, source: &Value, place: &Place<'_>) -> Shape {
        let path = place.path;
        let none = Map::new();
        let properties = source["properties"].as_object().unwrap_or(&none);
        let additional = &source["additionalProperties"];
        let embedded = source["x-kubernetes-embedded-resource"] == true;
        let atomic = source["x-kubernetes-map-type"] == "atomic";
        if place.role == Role::Root && !additional.is_null() {
            self.errors.push(Error::forbidden(&path.child("additionalProperties"), "must not be used at the root"));
        }
        if !properties.is_empty() && additional.is_object() {
            let detail = "must not be used together with additionalProperties";
            self.errors.push(Error::forbidden(&path.child("properties"), detail));
        } else if additional.is_object() || *additional == true {
            let path = path.child("additionalProperties");
            let place = Place { path: &path, role: Role::Additional, depth: place.depth + 1 };
            let value = if additional.is_object() {
                self.compile(additional, &place)
            } else {
                self.push(Type::inline(Shape::Any))
            };
            return Shape::Map { value, atomic };
        }
        let mut object = Object {
            preserve_unknown: source["x-kubernetes-preserve-unknown-fields"] == true,
            atomic,
            embedded,
            ..Object::default()
        };
        let implicit = place.role == Role::Root || embedded;
        for (name, property) in properties {
            let path = path.child("properties").key(name);
            if implicit && name == "metadata" {
                self.check_metadata(property, &path);
                continue;
            }
            let place = Place { path: &path, role: Role::Property, depth: place.depth + 1 };
            let ty = self.compile(property, &place);
            object.fields.push(self.field(name, ty, property, source));
        }
        if implicit {
            self.add_object_fields(&mut object, source);
        }
        object.fields.sort_by(|a, b| a.name.cmp(&b.name));
        Shape::Object(object)
    }

    fn field(&self, name: &str, ty: TypeId, property: &Value, owner: &Value) -> Field {
        let mut field = Field::new(name, ty);
        field.nullable = property["nullable"] == true;
        field.required = is_required(owner, name);
        field.default = property.get("default").filter(|v| !v.is_null() || field.nullable).cloned();
        field
    }

    /// `apiVersion`, `kind` and `metadata` of the root and of embedded resources.
    fn add_object_fields(&mut self, object: &mut Object, source: &Value) {
        for name in ["apiVersion", "kind"] {
            if object.fields.iter().all(|field| *field.name != *name) {
                let string = self.push(Type::inline(Shape::Scalar(Scalar::String)));
                object.fields.push(Field::new(name, string));
            }
        }
        let meta = builtin().by_name(OBJECT_META).expect("the built-in schema has ObjectMeta");
        let mut metadata = Field::new("metadata", self.copy(meta));
        metadata.required = is_required(source, "metadata");
        object.fields.push(metadata);
    }

    fn check_metadata(&mut self, property: &Value, path: &Path) {
        let names = property["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let others = names.filter(|name| !matches!(*name, "name" | "generateName")).count();
        let restricted = ["additionalProperties", "required", "maxProperties", "minProperties"];
        if others > 0 || restricted.iter().any(|key| !property[*key].is_null()) {
            let detail =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.errors.push(Error::forbidden(path, detail));
        }
    }

    fn list(&mut self, source: &Value, place: &Place<'_>) -> Shape {
        let path = place.path.child("items");
        let item = if source["items"].is_object() {
            self.compile(&source["items"], &Place { path: &path, role: Role::Items, depth: place.depth + 1 })
        } else {
            self.errors.push(Error::required(&path, "must be specified"));
            self.push(Type::inline(Shape::Any))
        };
        let at = |name: &str| place.path.child(name);
        let keys: Vec<Box<str>> = source["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect();
        let kind = match source["x-kubernetes-list-type"].as_str() {
            None | Some("atomic") => ListKind::Atomic,
            Some("set") => ListKind::Set,
            Some("map") => {
                if keys.is_empty() {
                    let detail = "must not be empty if x-kubernetes-list-type is map";
                    self.errors.push(Error::required(&at("x-kubernetes-list-map-keys"), detail));
                }
                self.check_keys(&keys, item, place.path);
                ListKind::Map { keys }
            }
            Some(other) => {
                let at = at("x-kubernetes-list-type");
                self.errors.push(Error::not_supported(&at, &json!(other), &["atomic", "set", "map"]));
                ListKind::Atomic
            }
        };
        Shape::List(List { item, kind })
    }

    /// A key of a map-like list must always have a value.
    fn check_keys(&mut self, keys: &[Box<str>], item: TypeId, path: &Path) {
        let Shape::Object(object) = &self.types[item.0 as usize].shape else {
            let detail = "must be object if parent array's x-kubernetes-list-type is map";
            self.errors.push(Error::invalid(&path.child("items").child("type"), &json!("?"), detail));
            return;
        };
        let mut faults = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            match object.field(key) {
                None => {
                    let at = path.child("x-kubernetes-list-map-keys").index(i);
                    let detail = "entries must all be names of item properties";
                    faults.push(Error::invalid(&at, &json!(key), detail));
                }
                Some(field) if !field.required && field.default.is_none() => {
                    let at = path.child("items").child("properties").key(key).child("default");
                    let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    faults.push(Error::required(&at, detail));
                }
                Some(_) => {}
            }
        }
        self.errors.extend(faults);
    }

    fn rules(&mut self, source: &Value, path: &Path) -> Vec<Rule> {
        let mut rules = Vec::new();
        let count = |key: &str| source[key].as_u64().and_then(|n| usize::try_from(n).ok());
        type Bound = fn(usize) -> Rule;
        let counts: [(&str, Bound); 6] = [
            ("minLength", Rule::MinLength),
            ("maxLength", Rule::MaxLength),
            ("minItems", Rule::MinItems),
            ("maxItems", Rule::MaxItems),
            ("minProperties", Rule::MinProperties),
            ("maxProperties", Rule::MaxProperties),
        ];
        rules.extend(counts.iter().filter_map(|(key, rule)| count(key).map(rule)));
        if let Some(values) = source["enum"].as_array() {
            let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned).into();
            rules.push(Rule::Enum(values.iter().filter(|v| !v.is_null()).map(text).collect()));
        }
        let bound =
            |key: &str, exclusive: &str, is: bool| source[key].as_f64().filter(|_| (source[exclusive] == true) == is);
        let (min, max) = (bound("minimum", "exclusiveMinimum", false), bound("maximum", "exclusiveMaximum", false));
        if min.is_some() || max.is_some() {
            rules.push(Rule::Range { min, max });
        }
        let (above, below) = (bound("minimum", "exclusiveMinimum", true), bound("maximum", "exclusiveMaximum", true));
        if above.is_some() || below.is_some() {
            rules.push(Rule::Between { above, below });
        }
        rules.extend(source["multipleOf"].as_f64().map(Rule::MultipleOf));
        if let Some(text) = source["pattern"].as_str().filter(|text| !text.is_empty()) {
            let pattern = Pattern::new(text);
            if pattern.is_match("").is_none() {
                let detail = "must be a valid regular expression, but isn't";
                self.errors.push(Error::invalid(&path.child("pattern"), &json!(text), detail));
            }
            rules.push(Rule::Pattern(pattern));
        }
        rules
    }

    /// Copies a built-in type with all that it refers to.
    fn copy(&mut self, id: TypeId) -> TypeId {
        if let Some(known) = self.copied.get(&id) {
            return *known;
        }
        let source = builtin().get(id);
        let copy = self.push(source.clone());
        self.copied.insert(id, copy);
        let shape = match &source.shape {
            Shape::Object(object) => {
                let mut object = object.clone();
                for field in &mut object.fields {
                    field.ty = self.copy(field.ty);
                }
                object.additional = object.additional.map(|ty| self.copy(ty));
                Shape::Object(object)
            }
            Shape::Map { value, atomic } => Shape::Map { value: self.copy(*value), atomic: *atomic },
            Shape::List(list) => Shape::List(List { item: self.copy(list.item), kind: list.kind.clone() }),
            other => other.clone(),
        };
        self.types[copy.0 as usize].shape = shape;
        copy
    }
}

fn is_required(owner: &Value, name: &str) -> bool {
    owner["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name))
}
