//! An OpenAPI 2.0 document as `gnostic.openapi.v2.Document`, the protobuf form that client-go of before OpenAPI 3 asks for.
//!
//! Only what our documents contain is encoded. Field numbers are those of gnostic's `OpenAPIv2.proto`.

use serde_json::{Map, Value};

/// What clients accept.
pub const ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What the answer says it is: the accepted type is no valid media type, and client-go's parser refuses it.
pub const CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Encodes a document that [`super::v2::document`] made.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, |info| {
        info.text(1, &document["info"]["title"]);
        info.text(2, &document["info"]["version"]);
    });
    out.message(8, |paths| named(paths, 2, &document["paths"], path_item));
    out.message(9, |definitions| named(definitions, 1, &document["definitions"], schema));
    for requirement in items(&document["security"]) {
        out.message(12, |out| named(out, 1, requirement, |out, scopes| out.texts(1, scopes)));
    }
    out.message(13, |definitions| named(definitions, 1, &document["securityDefinitions"], security));
    out.bytes
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// A string; nothing for a value that is none.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.delimited(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, values: &Value) {
        items(values).for_each(|value| self.text(field, value));
    }

    fn boolean(&mut self, field: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.varint(u64::from(field << 3));
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_i64() {
            self.varint(u64::from(field << 3));
            // Two's complement, as protobuf's int64.
            self.varint(number as u64);
        }
    }

    fn double(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_f64() {
            self.varint(u64::from(field << 3 | 1));
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.delimited(field, &inner.bytes);
    }

    /// `Any`, which gnostic fills with YAML.
    fn any(&mut self, field: u32, value: &Value) {
        self.message(field, |any| any.delimited(2, value.to_string().as_bytes()));
    }

    fn extensions(&mut self, field: u32, value: &Value) {
        for (name, value) in entries(value).filter(|(name, _)| name.starts_with("x-")) {
            self.message(field, |out| {
                out.delimited(1, name.as_bytes());
                out.any(2, value);
            });
        }
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// Repeated `Named…` messages: the key as field 1, the value as field 2.
fn named(out: &mut Message, field: u32, map: &Value, write: impl Fn(&mut Message, &Value)) {
    for (name, value) in entries(map) {
        out.message(field, |out| {
            out.delimited(1, name.as_bytes());
            out.message(2, |out| write(out, value));
        });
    }
}

/// `SecurityDefinitionsItem` with an `ApiKeySecurity`.
fn security(out: &mut Message, value: &Value) {
    out.message(2, |key| {
        for (field, name) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
            key.text(field, &value[name]);
        }
    });
}

fn path_item(out: &mut Message, value: &Value) {
    for (field, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if value[method].is_object() {
            out.message(field, |out| operation(out, &value[method]));
        }
    }
    for item in items(&value["parameters"]) {
        out.message(9, |out| parameter(out, item));
    }
    out.extensions(10, value);
}

fn operation(out: &mut Message, value: &Value) {
    out.texts(1, &value["tags"]);
    out.text(3, &value["description"]);
    out.text(5, &value["operationId"]);
    out.texts(6, &value["produces"]);
    out.texts(7, &value["consumes"]);
    for item in items(&value["parameters"]) {
        out.message(8, |out| parameter(out, item));
    }
    out.message(9, |responses| {
        named(responses, 1, &value["responses"], |out, response| {
            out.message(1, |out| {
                out.text(1, &response["description"]);
                if response["schema"].is_object() {
                    out.message(2, |item| item.message(1, |out| schema(out, &response["schema"])));
                }
                out.extensions(5, response);
            });
        });
    });
    out.texts(10, &value["schemes"]);
    out.extensions(13, value);
}

/// `ParametersItem`, which wraps `Parameter`, which wraps the parameter's kind.
fn parameter(out: &mut Message, value: &Value) {
    out.message(1, |out| match value["in"].as_str() {
        Some("body") => out.message(1, |body| {
            body.text(1, &value["description"]);
            body.text(2, &value["name"]);
            body.text(3, &value["in"]);
            body.boolean(4, &value["required"]);
            body.message(5, |out| schema(out, &value["schema"]));
        }),
        Some("path") => out.message(2, |out| out.message(4, |path| simple_parameter(path, value, 5, 19))),
        _ => out.message(2, |out| out.message(3, |query| simple_parameter(query, value, 6, 20))),
    });
}

/// Path and query parameters differ in the numbers of what follows the name.
fn simple_parameter(out: &mut Message, value: &Value, type_field: u32, unique_field: u32) {
    out.boolean(1, &value["required"]);
    out.text(2, &value["in"]);
    out.text(3, &value["description"]);
    out.text(4, &value["name"]);
    out.text(type_field, &value["type"]);
    out.boolean(unique_field, &value["uniqueItems"]);
}

fn schema(out: &mut Message, value: &Value) {
    for (field, name) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description"), (13, "pattern")] {
        out.text(field, &value[name]);
    }
    if let Some(default) = value.get("default") {
        out.any(5, default);
    }
    for (field, name) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        out.double(field, &value[name]);
    }
    for (field, name) in [(8, "exclusiveMaximum"), (10, "exclusiveMinimum"), (16, "uniqueItems")] {
        out.boolean(field, &value[name]);
    }
    let bounds = [
        (11, "maxLength"),
        (12, "minLength"),
        (14, "maxItems"),
        (15, "minItems"),
        (17, "maxProperties"),
        (18, "minProperties"),
    ];
    for (field, name) in bounds {
        out.integer(field, &value[name]);
    }
    out.texts(19, &value["required"]);
    items(&value["enum"]).for_each(|item| out.any(20, item));
    if value["additionalProperties"].is_object() {
        out.message(21, |out| out.message(1, |out| schema(out, &value["additionalProperties"])));
    }
    if value["type"].is_string() {
        out.message(22, |out| out.text(1, &value["type"]));
    }
    if value["items"].is_object() {
        out.message(23, |out| out.message(1, |out| schema(out, &value["items"])));
    }
    items(&value["allOf"]).for_each(|part| out.message(24, |out| schema(out, part)));
    if value["properties"].is_object() {
        out.message(25, |out| named(out, 1, &value["properties"], schema));
    }
    out.extensions(31, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bytes_of_a_small_document() {
        let document = json!({
            "swagger": "2.0", "info": {"title": "K", "version": "v1"}, "paths": {},
            "definitions": {"A": {"type": "object", "required": ["b"], "x-k": {"a": 1}}},
        });
        let expected: &[&[u8]] = &[
            b"\x0a\x032.0",                                      // swagger
            b"\x12\x07\x0a\x01K\x12\x02v1",                      // info
            b"\x42\x00",                                         // paths
            b"\x4a\x29\x0a\x27",                                 // definitions: one NamedSchema
            b"\x0a\x01A\x12\x22",                                // its name and schema
            b"\x9a\x01\x01b",                                    // required
            b"\xb2\x01\x08\x0a\x06object",                       // type
            b"\xfa\x01\x10\x0a\x03x-k\x12\x09\x12\x07{\"a\":1}", // extension
            b"\x6a\x00",                                         // security definitions
        ];
        let expected: Vec<u8> = expected.concat();
        assert_eq!(encode(&document), expected);
    }
}
