//! Kubernetes' protobuf encoding: read into JSON values by the schema, and ([`encode`]) written from JSON.
//!
//! Go clients send it for built-in kinds, and ask for it. Which number is which field is generated data (`cargo xtask protobuf`), and
//! `protobuf-newer.txt`. Go writes every scalar that is no pointer, zero or not, so zeros are dropped where upstream cannot tell them
//! from absent.

pub mod encode;
mod wire;

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::schema::{MAX_DEPTH, Scalar, Schema, Shape, TypeId, builtin};

/// What every message starts with.
pub const MAGIC: &[u8] = b"k8s\0";
/// The content type of objects, lists and statuses.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Of watch streams.
pub const STREAM_CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const NUMBERS: &str = include_str!("../data/protobuf.txt");
const NEWER: &str = include_str!("../data/protobuf-newer.txt");
const POINTERS: &str = include_str!("../data/pointers.txt");

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NotProtobuf,
    #[error("empty body")]
    Empty,
    #[error("proto: {0}")]
    Malformed(&'static str),
    /// The kind has no protobuf form here.
    #[error("no protobuf encoding is known of {kind} in {api_version}")]
    Unknown { api_version: String, kind: String },
}

const TRUNCATED: DecodeError = DecodeError::Malformed("unexpected EOF");

/// One message's numbers: a field of the type, or a message that JSON does not show.
#[derive(Default)]
struct Numbers {
    by_number: HashMap<u32, Target>,
}

enum Target {
    Field(&'static str),
    Inline(Numbers),
}

/// Numbers by the names of fields: the way through messages that JSON does not show, then the field's own.
type Paths = HashMap<&'static str, Vec<u32>>;

struct Tables {
    /// By definition, for encoding.
    paths: HashMap<&'static str, Paths>,
    messages: HashMap<&'static str, Numbers>,
    pointers: HashSet<(&'static str, &'static str)>,
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut paths: HashMap<&str, Paths> = HashMap::new();
        for line in data_lines(NUMBERS).chain(data_lines(NEWER)) {
            let mut words = line.split(' ');
            let Some(definition) = words.next() else { continue };
            let fields = paths.entry(definition).or_default();
            for word in words {
                let Some((field, path)) = word.split_once('=') else { continue };
                fields.insert(field, path.split('.').filter_map(|number| number.parse().ok()).collect());
            }
        }
        let message = |fields: &Paths| {
            let mut numbers = Numbers::default();
            for (field, path) in fields {
                numbers.insert(path, field);
            }
            numbers
        };
        let messages = paths.iter().map(|(definition, fields)| (*definition, message(fields))).collect();
        let mut pointers = HashSet::new();
        for line in data_lines(POINTERS) {
            let Some((definition, fields)) = line.split_once(' ') else { continue };
            pointers.extend(fields.split(' ').map(|field| (definition, field)));
        }
        Tables { paths, messages, pointers }
    })
}

fn data_lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'))
}

impl Numbers {
    fn insert(&mut self, path: &[u32], field: &'static str) {
        match path {
            [] => {}
            [number] => {
                self.by_number.insert(*number, Target::Field(field));
            }
            [number, rest @ ..] => {
                let inner = self.by_number.entry(*number).or_insert_with(|| Target::Inline(Numbers::default()));
                if let Target::Inline(inner) = inner {
                    inner.insert(rest, field);
                }
            }
        }
    }
}

/// Reads an enveloped object (`runtime.Unknown`) of a built-in kind; `apiVersion` and `kind` are those of the envelope.
pub fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(DecodeError::NotProtobuf)?;
    if body.is_empty() {
        return Err(DecodeError::Empty);
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(body);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = text_of(text)?,
                        (2, Wire::Bytes(text)) => kind = text_of(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let schema = builtin();
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let found = schema.by_kind(group, version, &kind).or_else(|| options_type(schema, &kind));
    let known = found.filter(|id| tables().messages.contains_key(&*schema.get(*id).name));
    let Some(id) = known else { return Err(DecodeError::Unknown { api_version, kind }) };
    let mut value = Decoder { schema }.message(id, raw, 0)?;
    if let Value::Object(map) = &mut value {
        map.insert("apiVersion".to_owned(), json!(api_version));
        map.insert("kind".to_owned(), json!(kind));
    }
    Ok(value)
}

/// Options travel under the group of the resource that they are for.
fn options_type(schema: &Schema, kind: &str) -> Option<TypeId> {
    schema.by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
}

fn text_of(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| DecodeError::Malformed("string field contains invalid UTF-8"))
}

enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| DecodeError::Malformed("illegal tag"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| TRUNCATED)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(u64::from(u32::from_le_bytes(self.array()?))),
            _ => return Err(DecodeError::Malformed("illegal wireType")),
        };
        Ok(Some((number, wire)))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(TRUNCATED)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed("integer overflow"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| TRUNCATED)
    }
}

struct Decoder<'a> {
    schema: &'a Schema,
}

impl Decoder<'_> {
    fn message(&self, id: TypeId, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        let name = &*self.schema.get(id).name;
        if let Some(numbers) = tables().messages.get(name) {
            self.fields(id, name, numbers, bytes, &mut map, depth)?;
        }
        Ok(Value::Object(map))
    }

    fn fields(
        &self,
        id: TypeId,
        definition: &str,
        numbers: &Numbers,
        bytes: &[u8],
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::Malformed("exceeded max depth"));
        }
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (numbers.by_number.get(&number), wire) {
                (Some(Target::Inline(inner)), Wire::Bytes(bytes)) => {
                    self.fields(id, definition, inner, bytes, map, depth + 1)?;
                }
                (Some(Target::Field(field)), wire) => {
                    let Some(found) = self.schema.object(id).and_then(|o| o.field(field)) else { continue };
                    let keep_zero = tables().pointers.contains(&(definition, *field));
                    self.put(map, field, found.ty, wire, keep_zero, depth)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn put(
        &self,
        map: &mut Map<String, Value>,
        field: &str,
        ty: TypeId,
        wire: Wire<'_>,
        keep_zero: bool,
        depth: usize,
    ) -> Result<(), DecodeError> {
        match &self.schema.get(ty).shape {
            Shape::List(list) => {
                let items = map.entry(field.to_owned()).or_insert_with(|| json!([]));
                if let (Some(item), Value::Array(items)) = (self.value(list.item, wire, depth)?, items) {
                    items.push(item);
                }
            }
            Shape::Map { value, .. } => {
                let Wire::Bytes(bytes) = wire else { return Err(DecodeError::Malformed("wrong wireType of a map")) };
                let (key, item) = self.entry(*value, bytes, depth)?;
                let entries = map.entry(field.to_owned()).or_insert_with(|| json!({}));
                entries[key] = item;
            }
            shape => {
                // A schema's `default: 0` or `additionalProperties: false` travels in a message of its own, so it was said.
                let said = keep_zero || matches!(shape, Shape::Any);
                if let Some(found) = self.value(ty, wire, depth)?
                    && (said || !is_zero(&found))
                {
                    map.insert(field.to_owned(), found);
                }
            }
        }
        Ok(())
    }

    fn entry(&self, value: TypeId, bytes: &[u8], depth: usize) -> Result<(String, Value), DecodeError> {
        let mut key = String::new();
        let mut item = None;
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Bytes(text)) => key = text_of(text)?,
                (2, wire) => item = self.value(value, wire, depth)?,
                _ => {}
            }
        }
        let empty = || match &self.schema.get(value).shape {
            Shape::List(_) => json!([]),
            Shape::Scalar(Scalar::Time | Scalar::MicroTime) => Value::Null,
            Shape::Scalar(_) => json!(""),
            _ => json!({}),
        };
        Ok((key, item.unwrap_or_else(empty)))
    }

    /// One value; none for a message that stands for null (the zero time).
    fn value(&self, ty: TypeId, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, DecodeError> {
        let wrong = DecodeError::Malformed("wrong wireType");
        match (&self.schema.get(ty).shape, wire) {
            (Shape::Scalar(scalar), wire) => scalar_value(*scalar, wire),
            (Shape::Object(_), Wire::Bytes(bytes)) => self.message(ty, bytes, depth + 1).map(Some),
            (Shape::Any, Wire::Bytes(bytes)) => match self.schema_or(ty, bytes, depth)? {
                Some(value) => Ok(Some(value)),
                None => raw_json(bytes),
            },
            // A list as a map's value is a message with the items as field 1.
            (Shape::List(list), Wire::Bytes(bytes)) => {
                let mut items = Vec::new();
                let mut reader = Reader(bytes);
                while let Some((_, wire)) = reader.next()? {
                    items.extend(self.value(list.item, wire, depth + 1)?);
                }
                Ok(Some(Value::Array(items)))
            }
            _ => Err(wrong),
        }
    }
}

impl Decoder<'_> {
    /// `JSONSchemaPropsOrBool`, `…OrArray` and `…OrStringArray`: a message that has a field for each. None for any other type.
    fn schema_or(&self, ty: TypeId, bytes: &[u8], depth: usize) -> Result<Option<Value>, DecodeError> {
        let name = self.schema.get(ty).name.rsplit_once('.').map_or("", |(_, name)| name);
        let (single, list) = match name {
            "JSONSchemaPropsOrBool" => (2, 0),
            "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => (1, 2),
            _ => return Ok(None),
        };
        let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let Some(props) = self.schema.by_name(props) else { return Ok(None) };
        let mut items = Vec::new();
        let mut allows = false;
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next()? {
            match wire {
                Wire::Varint(n) if number == 1 => allows = n != 0,
                Wire::Bytes(bytes) if number == single => return self.message(props, bytes, depth + 1).map(Some),
                Wire::Bytes(bytes) if number == list && name.ends_with("StringArray") => {
                    items.push(json!(text_of(bytes)?));
                }
                Wire::Bytes(bytes) if number == list => items.push(self.message(props, bytes, depth + 1)?),
                _ => {}
            }
        }
        Ok(Some(if list == 0 { json!(allows) } else { json!(items) }))
    }
}

/// `RawExtension`, `FieldsV1` and `JSON`: the bytes of a JSON text as field 1.
fn raw_json(bytes: &[u8]) -> Result<Option<Value>, DecodeError> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(text)) = (number, wire) {
            return serde_json::from_slice(text)
                .map(Some)
                .map_err(|_| DecodeError::Malformed("embedded JSON is not valid"));
        }
    }
    Ok(None)
}

fn scalar_value(scalar: Scalar, wire: Wire<'_>) -> Result<Option<Value>, DecodeError> {
    let value = match (scalar, wire) {
        (Scalar::String, Wire::Bytes(bytes)) => json!(text_of(bytes)?),
        (Scalar::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Scalar::Bool, Wire::Varint(n)) => json!(n != 0),
        // Negative numbers travel as 64-bit two's complement.
        (Scalar::Int32 | Scalar::Int64, Wire::Varint(n)) => json!(n.cast_signed()),
        (Scalar::Double, Wire::Fixed(bits)) => json!(f64::from_bits(bits)),
        (Scalar::Quantity, Wire::Bytes(bytes)) => {
            let text = first(bytes, 1)?;
            json!(text_of(text)?)
        }
        (Scalar::Time | Scalar::MicroTime, Wire::Bytes(bytes)) => return time(scalar, bytes),
        (Scalar::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        _ => return Err(DecodeError::Malformed("wrong wireType")),
    };
    Ok(Some(value))
}

fn first(bytes: &[u8], wanted: u32) -> Result<&[u8], DecodeError> {
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let (true, Wire::Bytes(found)) = (number == wanted, wire) {
            return Ok(found);
        }
    }
    Ok(&[])
}

fn time(scalar: Scalar, bytes: &[u8]) -> Result<Option<Value>, DecodeError> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader(bytes);
    let mut any = false;
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => (seconds, any) = (n.cast_signed(), true),
            (2, Wire::Varint(n)) => nanos = i32::try_from(n.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    // The zero time of Go, and no time at all, are both null in JSON.
    const GO_ZERO: i64 = -62_135_596_800;
    if !any || seconds == GO_ZERO {
        return Ok(None);
    }
    let stamp = jiff::Timestamp::new(seconds, if scalar == Scalar::MicroTime { nanos } else { 0 });
    let stamp = stamp.map_err(|_| DecodeError::Malformed("time out of range"))?;
    Ok(Some(match scalar {
        Scalar::MicroTime => json!(format!("{stamp:.6}")),
        _ => json!(stamp.to_string()),
    }))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_text, mut number, mut text) = (false, 0i64, String::new());
    let mut reader = Reader(bytes);
    while let Some((field, wire)) = reader.next()? {
        match (field, wire) {
            (1, Wire::Varint(n)) => is_text = n != 0,
            (2, Wire::Varint(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = text_of(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
