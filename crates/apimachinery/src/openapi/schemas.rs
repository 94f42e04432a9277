//! Types as OpenAPI schemas, in the dialects of version 2 and version 3.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::custom;
use super::descriptions::Descriptions;
use crate::resource::ResourceRow;
use crate::schema::{
    Field, GroupVersionKind, List, ListKind, Object, Rule, Scalar, Schema, Shape, Type, TypeId, builtin,
};

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        let prefix = match self {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        json!({ "$ref": format!("{prefix}{name}") })
    }

    /// A reference with words of its own: version 3 needs `allOf` for that.
    pub fn described(self, mut reference: Value, text: &str) -> Value {
        match self {
            Dialect::V2 => {
                reference["description"] = text.into();
                reference
            }
            Dialect::V3 => json!({"allOf": [reference], "description": text}),
        }
    }
}

/// The name of a row's kind among the definitions. Custom kinds are named by their reversed group, as upstream does.
pub fn kind_name(row: &ResourceRow) -> String {
    definition_name(row, &row.kind)
}

pub fn list_name(row: &ResourceRow) -> String {
    definition_name(row, &row.list_kind)
}

fn definition_name(row: &ResourceRow, kind: &str) -> String {
    if !row.custom {
        let name = &row.schema.get(row.root).name;
        let package = name.rsplit_once('.').map_or("", |(package, _)| package);
        return format!("{package}.{kind}");
    }
    let mut parts: Vec<&str> = row.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), row.version)
}

/// Collects definitions, each once, with all that they refer to.
pub struct Definitions {
    dialect: Dialect,
    texts: Descriptions,
    done: BTreeSet<String>,
    pub schemas: Map<String, Value>,
}

impl Definitions {
    pub fn new(dialect: Dialect, texts: Descriptions) -> Self {
        Definitions { dialect, texts, done: BTreeSet::new(), schemas: Map::new() }
    }

    /// A built-in definition by its name; nothing if there is none.
    pub fn add_named(&mut self, schema: &Schema, name: &str) {
        if let Some(id) = schema.by_name(name) {
            self.add(schema, id);
        }
    }

    /// A row's kind and its list.
    pub fn add_row(&mut self, row: &Arc<ResourceRow>) {
        if row.custom {
            self.add_custom(row);
            return;
        }
        self.add(&row.schema, row.root);
        self.add_named(&row.schema, &list_name(row));
    }

    fn add(&mut self, schema: &Schema, id: TypeId) {
        let ty = schema.get(id);
        if !self.done.insert(ty.name.to_string()) {
            return;
        }
        let mut value = self.inline(schema, ty, &ty.name);
        if let Some(text) = self.texts.definition(&ty.name) {
            value["description"] = text.into();
        } else if let Some(item) = ty.name.strip_suffix("List") {
            let kind = item.rsplit('.').next().unwrap_or_default();
            value["description"] = format!("{kind}List is a list of {kind} objects.").into();
        }
        if !ty.gvks.is_empty() {
            value["x-kubernetes-group-version-kind"] = ty.gvks.iter().map(gvk).collect();
        }
        self.schemas.insert(ty.name.to_string(), value);
    }

    fn add_custom(&mut self, row: &Arc<ResourceRow>) {
        let name = kind_name(row);
        if !self.done.insert(name.clone()) {
            return;
        }
        let kind = |kind: &str| json!([gvk(&GroupVersionKind::new(&row.group, &row.version, kind))]);
        let source = row.schema.source.as_deref().unwrap_or("{}");
        let mut value = custom::kind(source, self.dialect, &self.texts);
        value["x-kubernetes-group-version-kind"] = kind(&row.kind);
        self.schemas.insert(name.clone(), value);
        for meta in ["ObjectMeta", "ListMeta"] {
            self.add_named(builtin(), &format!("{META}.{meta}"));
        }
        let text = |field: &str| list_field("List", field).unwrap_or_default();
        let metadata = self.dialect.reference(&format!("{META}.ListMeta"));
        let list = json!({
            "description": format!("{} is a list of {}", row.list_kind, row.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": text("apiVersion")},
                "kind": {"type": "string", "description": text("kind")},
                "items": {"type": "array", "description": text("items"), "items": self.dialect.reference(&name)},
                "metadata": self.dialect.described(metadata, text("metadata")),
            },
            "x-kubernetes-group-version-kind": kind(&row.list_kind),
        });
        self.schemas.insert(list_name(row), list);
    }

    fn type_of(&mut self, schema: &Schema, id: TypeId, text: Option<&str>) -> Value {
        let ty = schema.get(id);
        if ty.name.is_empty() {
            let mut value = self.inline(schema, ty, "");
            if let Some(text) = text {
                value["description"] = text.into();
            }
            return value;
        }
        self.add(schema, id);
        let reference = self.dialect.reference(&ty.name);
        text.map_or(reference.clone(), |text| self.dialect.described(reference, text))
    }

    /// The schema of a type itself. `owner` is its definition, for the texts of its fields.
    fn inline(&mut self, schema: &Schema, ty: &Type, owner: &str) -> Value {
        match &ty.shape {
            Shape::Object(object) => self.object(schema, object, owner),
            Shape::Map { value, atomic } => {
                let mut map = json!({"type": "object", "additionalProperties": self.type_of(schema, *value, None)});
                if *atomic {
                    map["x-kubernetes-map-type"] = "atomic".into();
                }
                map
            }
            Shape::List(list) => self.list(schema, list),
            Shape::Scalar(kind) => self.scalar(*kind),
            Shape::Any if ty.name.contains(".JSON") => json!({}),
            Shape::Any => json!({"type": "object"}),
        }
    }

    fn object(&mut self, schema: &Schema, object: &Object, owner: &str) -> Value {
        let mut value = json!({"type": "object"});
        let mut properties = Map::new();
        for field in &object.fields {
            let property = self.field(schema, field, owner);
            properties.insert(field.name.to_string(), property);
        }
        if !properties.is_empty() {
            value["properties"] = Value::Object(properties);
        }
        let required: Vec<&str> = object.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        if !required.is_empty() {
            value["required"] = json!(required);
        }
        if object.atomic {
            value["x-kubernetes-map-type"] = "atomic".into();
        }
        value
    }

    fn field(&mut self, schema: &Schema, field: &Field, owner: &str) -> Value {
        let text = self.texts.field(owner, &field.name).or_else(|| list_field(owner, &field.name)).map(str::to_owned);
        let mut value = self.type_of(schema, field.ty, text.as_deref());
        let patch = &field.patch;
        let strategies = [(patch.merge, "merge"), (patch.retain_keys, "retainKeys"), (patch.replace, "replace")];
        let strategies: Vec<&str> = strategies.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if !strategies.is_empty() {
            value["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if let Some(key) = &patch.merge_key {
            value["x-kubernetes-patch-merge-key"] = (&**key).into();
        }
        if owner.ends_with("List") && &*field.name == "items" {
            value.as_object_mut().map(|map| map.remove("x-kubernetes-list-type"));
        }
        if self.dialect == Dialect::V3 && value["type"] == "string" {
            let values = field.rules.iter().find_map(|rule| match rule {
                Rule::Enum(values) => Some(values),
                _ => None,
            });
            if let Some(values) = values {
                value["enum"] = json!(values);
            }
        }
        value
    }

    fn list(&mut self, schema: &Schema, list: &List) -> Value {
        let mut value = json!({"type": "array", "items": self.type_of(schema, list.item, None)});
        match &list.kind {
            ListKind::Atomic => value["x-kubernetes-list-type"] = "atomic".into(),
            ListKind::Set => value["x-kubernetes-list-type"] = "set".into(),
            ListKind::Map { keys } => {
                value["x-kubernetes-list-type"] = "map".into();
                value["x-kubernetes-list-map-keys"] = keys.iter().map(|key| Value::from(&**key)).collect();
            }
        }
        value
    }

    fn scalar(&self, kind: Scalar) -> Value {
        match (kind, self.dialect) {
            (Scalar::String, _) | (Scalar::Quantity, Dialect::V2) => json!({"type": "string"}),
            (Scalar::Bytes, _) => json!({"type": "string", "format": "byte"}),
            (Scalar::Time | Scalar::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            (Scalar::Quantity, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Scalar::IntOrString, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
            (Scalar::IntOrString, Dialect::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            (Scalar::Bool, _) => json!({"type": "boolean"}),
            (Scalar::Int32, _) => json!({"type": "integer", "format": "int32"}),
            (Scalar::Int64, _) => json!({"type": "integer", "format": "int64"}),
            (Scalar::Double, _) => json!({"type": "number", "format": "double"}),
        }
    }
}

fn gvk(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

/// Words for the fields that every list has; the linked crate has no schemas of lists.
fn list_field(owner: &str, field: &str) -> Option<&'static str> {
    if !owner.ends_with("List") {
        return None;
    }
    Some(match field {
        "apiVersion" => "The version of this list's schema.",
        "kind" => "The name of this list's kind.",
        "metadata" => "Standard list metadata.",
        "items" => "The objects of this list.",
        _ => return None,
    })
}
