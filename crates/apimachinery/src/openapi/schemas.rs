//! Types as OpenAPI schemas, in the dialects of version 2 and version 3.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use crate::resource::ResourceRow;
use crate::schema::{Field, GroupVersionKind, List, ListKind, Object, Rule, Scalar, Schema, Shape, Type, TypeId};

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
        let mut value = self.inline(&row.schema, row.schema.get(row.root), "");
        value["x-kubernetes-group-version-kind"] = kind(&row.kind);
        self.schemas.insert(name.clone(), value);
        self.add_named(crate::schema::builtin(), &format!("{META}.ListMeta"));
        let list = json!({
            "description": format!("{} is a list of {}", row.list_kind, row.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of this list's schema."},
                "kind": {"type": "string", "description": "The name of this list's kind."},
                "items": {
                    "type": "array", "description": format!("List of {}.", row.plural),
                    "items": self.dialect.reference(&name),
                },
                "metadata": self.referring(&format!("{META}.ListMeta"), Some("Standard list metadata.")),
            },
            "x-kubernetes-group-version-kind": kind(&row.list_kind),
        });
        self.schemas.insert(list_name(row), list);
    }

    /// A reference with words of its own: version 3 needs `allOf` for that.
    fn referring(&self, name: &str, text: Option<&str>) -> Value {
        let reference = self.dialect.reference(name);
        match (text, self.dialect) {
            (None, _) => reference,
            (Some(text), Dialect::V2) => {
                let mut reference = reference;
                reference["description"] = text.into();
                reference
            }
            (Some(text), Dialect::V3) => json!({"allOf": [reference], "description": text}),
        }
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
        self.referring(&ty.name, text)
    }

    /// The schema of a type itself. `owner` is its definition, for the texts of its fields.
    fn inline(&mut self, schema: &Schema, ty: &Type, owner: &str) -> Value {
        let mut value = match &ty.shape {
            Shape::Object(object) => self.object(schema, object, owner),
            Shape::Map { value, atomic } => {
                let mut map = json!({"type": "object", "additionalProperties": self.type_of(schema, *value, None)});
                if *atomic {
                    map["x-kubernetes-map-type"] = "atomic".into();
                }
                map
            }
            Shape::List(list) => self.list(schema, list),
            Shape::Scalar(kind) => self.scalar(*kind, ty.structural),
            Shape::Any if ty.structural => {
                json!({"x-kubernetes-preserve-unknown-fields": true})
            }
            Shape::Any if ty.name.contains(".JSON") => json!({}),
            Shape::Any => json!({"type": "object"}),
        };
        if let Some(text) = &ty.description {
            value["description"] = (&**text).into();
        }
        if self.dialect == Dialect::V3 && ty.nullable {
            value["nullable"] = true.into();
        }
        annotate(&mut value, &ty.rules);
        value
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
        if let Some(ty) = object.additional {
            value["additionalProperties"] = self.type_of(schema, ty, None);
        }
        for (present, key) in [
            (object.preserve_unknown, "x-kubernetes-preserve-unknown-fields"),
            (object.embedded, "x-kubernetes-embedded-resource"),
        ] {
            if present {
                value[key] = true.into();
            }
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
        if self.dialect == Dialect::V3 {
            let enumeration = field.rules.iter().filter(|rule| matches!(rule, Rule::Enum(_)));
            if value["type"] == "string" {
                enumeration.for_each(|rule| annotate(&mut value, std::slice::from_ref(rule)));
            }
            if let (Some(default), true) = (&field.default, schema.structural) {
                value["default"] = default.clone();
            }
        }
        value
    }

    fn list(&mut self, schema: &Schema, list: &List) -> Value {
        let mut value = json!({"type": "array", "items": self.type_of(schema, list.item, None)});
        match &list.kind {
            ListKind::Atomic if schema.structural => {}
            ListKind::Atomic => value["x-kubernetes-list-type"] = "atomic".into(),
            ListKind::Set => value["x-kubernetes-list-type"] = "set".into(),
            ListKind::Map { keys } => {
                value["x-kubernetes-list-type"] = "map".into();
                value["x-kubernetes-list-map-keys"] = keys.iter().map(|key| Value::from(&**key)).collect();
            }
        }
        value
    }

    fn scalar(&self, kind: Scalar, structural: bool) -> Value {
        match (kind, self.dialect) {
            (Scalar::String, _) | (Scalar::Quantity, Dialect::V2) => json!({"type": "string"}),
            (Scalar::Bytes, _) => json!({"type": "string", "format": "byte"}),
            (Scalar::Time | Scalar::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
            (Scalar::Quantity, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Scalar::IntOrString, _) if structural => json!({"x-kubernetes-int-or-string": true}),
            (Scalar::IntOrString, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
            (Scalar::IntOrString, Dialect::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            (Scalar::Bool, _) => json!({"type": "boolean"}),
            (Scalar::Int32, _) => json!({"type": "integer", "format": "int32"}),
            (Scalar::Int64, _) if structural => json!({"type": "integer"}),
            (Scalar::Int64, _) => json!({"type": "integer", "format": "int64"}),
            (Scalar::Double, _) if structural => json!({"type": "number"}),
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

/// Rules as the keywords of JSON schema, where it has one.
fn annotate(value: &mut Value, rules: &[Rule]) {
    for rule in rules {
        match rule {
            Rule::Enum(values) => {
                let text = value["type"] == "string";
                let parse = |v: &str| serde_json::from_str(v).unwrap_or_else(|_| v.into());
                value["enum"] = values.iter().map(|v| if text { Value::from(&**v) } else { parse(v) }).collect();
            }
            Rule::Range { min, max } => {
                set_number(value, "minimum", *min);
                set_number(value, "maximum", *max);
            }
            Rule::Between { above, below } => {
                for (bound, key, flag) in
                    [(above, "minimum", "exclusiveMinimum"), (below, "maximum", "exclusiveMaximum")]
                {
                    if bound.is_some() {
                        set_number(value, key, *bound);
                        value[flag] = true.into();
                    }
                }
            }
            Rule::MultipleOf(factor) => set_number(value, "multipleOf", Some(*factor)),
            Rule::MinLength(n) => value["minLength"] = (*n).into(),
            Rule::MaxLength(n) => value["maxLength"] = (*n).into(),
            Rule::MinItems(n) => value["minItems"] = (*n).into(),
            Rule::MaxItems(n) => value["maxItems"] = (*n).into(),
            Rule::MinProperties(n) => value["minProperties"] = (*n).into(),
            Rule::MaxProperties(n) => value["maxProperties"] = (*n).into(),
            Rule::UniqueItems => value["uniqueItems"] = true.into(),
            Rule::Pattern(pattern) => value["pattern"] = pattern.as_str().into(),
            _ => {}
        }
    }
}

/// Whole numbers are written without a fraction.
fn set_number(value: &mut Value, key: &str, number: Option<f64>) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = number {
        let whole = number.fract() == 0.0 && number.abs() <= EXACT;
        value[key] = if whole { json!(number as i64) } else { json!(number) };
    }
}
