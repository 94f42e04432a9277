//! From the JSON of a stored object straight to Kubernetes' protobuf: one pass over the text, guided by the schema.
//!
//! What JSON leaves out is left out here. Upstream writes the zeros of scalars that are no pointers, which every reader takes for
//! absent; so the bytes are fewer, and mean the same.

use std::fmt;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::wire::{FIXED64, LENGTH, bytes_field, nested, tag, text_field, varint, varint_field, varint_len};
use super::{MAGIC, options_type, tables};
use crate::schema::{Scalar, Schema, Shape, TypeId, builtin};

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The kind has no protobuf form here.
    #[error(
        "object {kind} in {api_version:?} does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message"
    )]
    Unknown { api_version: String, kind: String },
    #[error("the object does not fit its type: {0}")]
    Unfit(#[from] serde_json::Error),
}

/// What is written of a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// All that this built-in type has.
    Type(TypeId),
    /// Its metadata only: the message `PartialObjectMetadata`, of an object of any kind.
    Metadata,
}

impl Root {
    /// The built-in type of that group, version and kind, if it has a protobuf form.
    pub fn of_kind(api_version: &str, kind: &str) -> Option<Self> {
        if kind == "PartialObjectMetadata" {
            return Some(Root::Metadata);
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = builtin().by_kind(group, version, kind).or_else(|| options_type(builtin(), kind))?;
        Root::of_type(found)
    }

    /// A type of the built-in schema, if it has a protobuf form.
    pub fn of_type(id: TypeId) -> Option<Self> {
        plan().paths.get(id.0 as usize)?.as_ref().map(|_| Root::Type(id))
    }
}

/// Numbers of a type's fields, in the order of its [`Object::fields`](crate::schema::Object::fields): the path through messages that
/// JSON does not show, empty for a field that protobuf does not have.
type Paths = Box<[&'static [u32]]>;

struct Plan {
    /// By [`TypeId`].
    paths: Vec<Option<Paths>>,
    object_meta: TypeId,
    list_meta: TypeId,
    json_schema: TypeId,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let schema = builtin();
        let tables = tables();
        let paths = schema.types.iter().map(|ty| {
            let Shape::Object(object) = &ty.shape else { return None };
            let numbers = tables.paths.get(&*ty.name)?;
            Some(object.fields.iter().map(|f| numbers.get(&*f.name).map_or(&[][..], |path| &**path)).collect())
        });
        let named = |name: &str| schema.by_name(name).unwrap_or(TypeId(0));
        Plan {
            paths: paths.collect(),
            object_meta: named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            list_meta: named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
            json_schema: named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"),
        }
    })
}

/// One object in its envelope: the magic number and `runtime.Unknown`. `json` is the text of an object of `root`.
pub fn object(root: Root, api_version: &str, kind: &str, json: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut message = Vec::with_capacity(json.len());
    write_message(root, json, &mut message)?;
    let mut out = Vec::with_capacity(message.len() + 64);
    envelope(api_version, kind, message.len(), &mut out);
    out.extend_from_slice(&message);
    out.extend_from_slice(ENVELOPE_END);
    Ok(out)
}

/// An object that says itself of which kind it is, or a list of such.
pub fn value(value: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let json = value.to_string();
    if kind == "PartialObjectMetadataList" {
        let mut list = List::default();
        for item in value.get("items").and_then(Value::as_array).into_iter().flatten() {
            list.push(Root::Metadata, item.to_string().as_bytes())?;
        }
        let metadata = value.get("metadata").cloned().unwrap_or_default().to_string();
        let [head, tail] = list.ends(api_version, kind, &metadata)?;
        return Ok([head, list.items, tail.to_vec()].concat());
    }
    let unknown = || EncodeError::Unknown { api_version: api_version.to_owned(), kind: kind.to_owned() };
    object(Root::of_kind(api_version, kind).ok_or_else(unknown)?, api_version, kind, json.as_bytes())
}

/// The items of a list, as they are encoded one after the other. What comes before them tells how long they are.
#[derive(Default)]
pub struct List {
    pub items: Vec<u8>,
}

impl List {
    /// Appends an item, the JSON text of an object of `root`.
    pub fn push(&mut self, root: Root, json: &[u8]) -> Result<(), EncodeError> {
        nested(&mut self.items, 2, |out| write_message(root, json, out)).map_err(EncodeError::Unfit)
    }

    /// What goes before [`List::items`] and after them. `metadata` is the text of a `ListMeta`.
    pub fn ends(&self, api_version: &str, kind: &str, metadata: &str) -> Result<[Vec<u8>; 2], EncodeError> {
        Self::ends_of(self.items.len(), api_version, kind, metadata)
    }

    /// [`List::ends`] for items of so many bytes, wherever they are.
    pub fn ends_of(items: usize, api_version: &str, kind: &str, metadata: &str) -> Result<[Vec<u8>; 2], EncodeError> {
        let mut list_meta = Vec::new();
        let root = Root::Type(plan().list_meta);
        nested(&mut list_meta, 1, |out| write_message(root, metadata.as_bytes(), out)).map_err(EncodeError::Unfit)?;
        let mut head = Vec::new();
        envelope(api_version, kind, list_meta.len() + items, &mut head);
        head.extend_from_slice(&list_meta);
        Ok([head, ENVELOPE_END.to_vec()])
    }
}

/// A frame of a watch stream: its length in four bytes, and a `WatchEvent` around an object in its envelope.
pub fn watch_frame(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    text_field(out, 1, kind);
    let inner = 1 + varint_len(object.len() as u64) + object.len();
    tag(out, 2, LENGTH);
    varint(out, inner as u64);
    bytes_field(out, 1, object);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// `contentEncoding` and `contentType`, both empty, as upstream writes them.
const ENVELOPE_END: &[u8] = &[3 << 3 | LENGTH as u8, 0, 4 << 3 | LENGTH as u8, 0];

/// An envelope up to where a message of `length` bytes goes.
fn envelope(api_version: &str, kind: &str, length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    let _: Result<(), fmt::Error> = nested(out, 1, |out| {
        text_field(out, 1, api_version);
        text_field(out, 2, kind);
        Ok(())
    });
    tag(out, 2, LENGTH);
    varint(out, length as u64);
}

fn write_message(root: Root, json: &[u8], out: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    match root {
        Root::Type(id) => deserializer.deserialize_map(Message { out, id }),
        Root::Metadata => deserializer.deserialize_map(Metadata { out }),
    }
}

/// The fields of a message of type `id`.
struct Message<'a> {
    out: &'a mut Vec<u8>,
    id: TypeId,
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let schema = builtin();
        let (Some(object), Some(Some(paths))) = (schema.object(self.id), plan().paths.get(self.id.0 as usize)) else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let mut hidden: Vec<(&'static [u32], Vec<u8>)> = Vec::new();
        while let Some(found) = map.next_key_seed(Key(|name: &str| {
            object.fields.binary_search_by(|field| (*field.name).cmp(name)).ok().filter(|at| !paths[*at].is_empty())
        }))? {
            let Some(at) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let ty = object.fields[at].ty;
            match paths[at] {
                [number] => map.next_value_seed(Field { schema, out: self.out, ty, number: *number })?,
                path => {
                    let mut out = Vec::new();
                    let number = path.last().copied().unwrap_or_default();
                    map.next_value_seed(Field { schema, out: &mut out, ty, number })?;
                    // An empty list is no reason to write the message that would hold it.
                    if !out.is_empty() {
                        hidden.push((path, out));
                    }
                }
            }
        }
        hidden.sort_by_key(|(path, _)| *path);
        write_hidden(self.out, &hidden, 0);
        Ok(())
    }
}

/// Puts fields, sorted by path, into the messages that JSON does not show: each message once.
fn write_hidden(out: &mut Vec<u8>, fields: &[(&'static [u32], Vec<u8>)], depth: usize) {
    for group in fields.chunk_by(|a, b| a.0.get(depth) == b.0.get(depth)) {
        let Some((path, bytes)) = group.first() else { continue };
        if path.len() == depth + 1 {
            out.extend_from_slice(bytes);
            continue;
        }
        let _: Result<(), fmt::Error> = nested(out, path[depth], |out| {
            write_hidden(out, group, depth + 1);
            Ok(())
        });
    }
}

/// The one field of `PartialObjectMetadata`.
struct Metadata<'a> {
    out: &'a mut Vec<u8>,
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_metadata) = map.next_key_seed(Key(|name: &str| name == "metadata"))? {
            if is_metadata {
                let ty = plan().object_meta;
                map.next_value_seed(Field { schema: builtin(), out: self.out, ty, number: 1 })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// A key, looked at and not kept.
struct Key<F>(F);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Key<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Key<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok((self.0)(text))
    }
}

/// A value of type `ty` as field `number`: nothing for null, and as often as a list has items.
struct Field<'a> {
    schema: &'static Schema,
    out: &'a mut Vec<u8>,
    ty: TypeId,
    number: u32,
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let ty = self.schema.get(self.ty);
        if !matches!(ty.shape, Shape::Any) {
            return deserializer.deserialize_any(self);
        }
        match ty.name.rsplit_once('.').map_or(&*ty.name, |(_, name)| name) {
            "JSONSchemaPropsOrArray" => deserializer.deserialize_any(SchemaOr { field: self, list: 2, single: 1 }),
            "JSONSchemaPropsOrBool" => deserializer.deserialize_any(SchemaOr { field: self, list: 0, single: 2 }),
            "JSONSchemaPropsOrStringArray" => {
                deserializer.deserialize_any(SchemaOr { field: self, list: 2, single: 1 })
            }
            _ => self.raw(deserializer),
        }
    }
}

impl Field<'_> {
    /// `RawExtension`, `FieldsV1` and `JSON`: the JSON text itself as field 1.
    fn raw<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let text = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
        if text != "null" {
            let length = 1 + varint_len(text.len() as u64) + text.len();
            tag(self.out, self.number, LENGTH);
            varint(self.out, length as u64);
            text_field(self.out, 1, text);
        }
        Ok(())
    }

    fn integer<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        match &self.schema.get(self.ty).shape {
            Shape::Scalar(Scalar::Int32 | Scalar::Int64) => {
                varint_field(self.out, self.number, number.cast_unsigned());
            }
            Shape::Scalar(Scalar::Double) => return self.visit_f64(number as f64),
            Shape::Scalar(Scalar::IntOrString) => nested(self.out, self.number, |out| {
                varint_field(out, 1, 0);
                varint_field(out, 2, number.cast_unsigned());
                text_field(out, 3, "");
                Ok(())
            })?,
            Shape::Scalar(Scalar::Quantity) => return self.visit_str(&number.to_string()),
            _ => return Err(E::custom("a number where there should be none")),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {:?}", self.schema.get(self.ty).shape)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        varint_field(self.out, self.number, u64::from(value));
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(i64::try_from(value).map_err(E::custom)?)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match &self.schema.get(self.ty).shape {
            Shape::Scalar(Scalar::Double) => {
                tag(self.out, self.number, FIXED64);
                self.out.extend_from_slice(&value.to_bits().to_le_bytes());
                Ok(())
            }
            Shape::Scalar(Scalar::Quantity) => self.visit_str(&value.to_string()),
            _ if value.fract() == 0.0 && value.abs() < 9e15 => self.integer(value as i64),
            _ => Err(E::custom("a fraction where there should be none")),
        }
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let Shape::Scalar(scalar) = &self.schema.get(self.ty).shape else {
            return Err(E::custom("a string where there should be none"));
        };
        match scalar {
            Scalar::String => text_field(self.out, self.number, text),
            Scalar::Bytes => bytes_field(self.out, self.number, &STANDARD.decode(text).map_err(E::custom)?),
            Scalar::Quantity => nested(self.out, self.number, |out| {
                text_field(out, 1, text);
                Ok(())
            })?,
            Scalar::IntOrString => nested(self.out, self.number, |out| {
                varint_field(out, 1, 1);
                varint_field(out, 2, 0);
                text_field(out, 3, text);
                Ok(())
            })?,
            Scalar::Time | Scalar::MicroTime => {
                let stamp = text.parse::<jiff::Timestamp>().map_err(E::custom)?;
                let (seconds, micros) =
                    (stamp.as_microsecond().div_euclid(1_000_000), stamp.as_microsecond().rem_euclid(1_000_000));
                let nanos = if *scalar == Scalar::MicroTime { micros * 1000 } else { 0 };
                nested(self.out, self.number, |out| {
                    varint_field(out, 1, seconds.cast_unsigned());
                    varint_field(out, 2, nanos.cast_unsigned());
                    Ok(())
                })?;
            }
            _ => return Err(E::custom("a string where there should be none")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Shape::List(list) = &self.schema.get(self.ty).shape else {
            return Err(A::Error::custom("a list where there should be none"));
        };
        let (schema, number) = (self.schema, self.number);
        while items.next_element_seed(Field { schema, out: &mut *self.out, ty: list.item, number })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (schema, out, number) = (self.schema, self.out, self.number);
        match &schema.get(self.ty).shape {
            Shape::Object(_) => nested(out, number, |out| Message { out, id: self.ty }.visit_map(map)),
            Shape::Map { value, .. } => {
                while let Some(()) = entry(&mut map, schema, *value, number, out)? {}
                Ok(())
            }
            _ => Err(A::Error::custom("an object where there should be none")),
        }
    }
}

/// One entry of a map: a message of key and value. A list as a value is a message with the items as field 1.
fn entry<'de, A: MapAccess<'de>>(
    map: &mut A,
    schema: &'static Schema,
    ty: TypeId,
    number: u32,
    out: &mut Vec<u8>,
) -> Result<Option<()>, A::Error> {
    let start = out.len();
    let mut ended = false;
    nested(out, number, |out| {
        if map.next_key_seed(Key(|key: &str| text_field(out, 1, key)))?.is_none() {
            ended = true;
            return Ok(());
        }
        let before = out.len();
        match &schema.get(ty).shape {
            Shape::List(_) => nested(out, 2, |out| map.next_value_seed(Field { schema, out, ty, number: 1 }))?,
            _ => map.next_value_seed(Field { schema, out: &mut *out, ty, number: 2 })?,
        }
        let is_number = matches!(
            schema.get(ty).shape,
            Shape::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Double)
        );
        if out.len() == before && !is_number {
            bytes_field(out, 2, &[]);
        }
        Ok(())
    })?;
    if ended {
        out.truncate(start);
        return Ok(None);
    }
    Ok(Some(()))
}

/// `JSONSchemaProps`, or a list or a boolean in its place: a message that has a field for each. `list` 0: no lists but booleans.
struct SchemaOr<'a> {
    field: Field<'a>,
    single: u32,
    list: u32,
}

impl<'de> Visitor<'de> for SchemaOr<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a schema")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        nested(self.field.out, self.field.number, |out| {
            varint_field(out, 1, u64::from(value));
            Ok(())
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let number = self.list;
        nested(self.field.out, self.field.number, |out| {
            while items.next_element_seed(SchemaItem { out: &mut *out, number })?.is_some() {}
            Ok(())
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        nested(self.field.out, self.field.number, |out| {
            if self.list == 0 {
                varint_field(out, 1, 1);
            }
            nested(out, self.single, |out| Message { out, id: plan().json_schema }.visit_map(map))
        })
    }
}

/// An item of a list of schemas or of names.
struct SchemaItem<'a> {
    out: &'a mut Vec<u8>,
    number: u32,
}

impl<'de> DeserializeSeed<'de> for SchemaItem<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SchemaItem<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a schema or a name")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        text_field(self.out, self.number, text);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        nested(self.out, self.number, |out| Message { out, id: plan().json_schema }.visit_map(map))
    }
}
