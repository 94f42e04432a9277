//! From a request's body to an object that fits its row: format, kind, schema, defaults.

use apimachinery::Value;
use apimachinery::protobuf;
use apimachinery::resource::ResourceRow;
use apimachinery::schema::{decode, default};
use apimachinery::status::{Result, StatusError};
use bytes::Bytes;
use http::header;
use serde_json::json;

use super::options::WriteOptions;
use crate::http::Body;
use crate::http::negotiate::{BodyFormat, SERVED, body_format};
use crate::server::{ApiServer, Call, collect};

/// Reads and parses the body. What the parser noticed (duplicate fields) is in the second value.
pub async fn read(call: &Call, body: Body) -> Result<decode::Decoded> {
    let format = body_format(call.header(header::CONTENT_TYPE))?;
    let bytes = collect(body).await?;
    parse(&bytes, format, &call.row.kind)
}

/// Bytes to a JSON value; `kind` is what the path serves, for the words of the error.
pub fn parse(bytes: &Bytes, format: BodyFormat, kind: &str) -> Result<decode::Decoded> {
    let decoded = match format {
        BodyFormat::Json => decode::from_json(bytes),
        BodyFormat::Yaml => decode::from_yaml(bytes),
        BodyFormat::Protobuf => {
            return match protobuf::decode(bytes) {
                Ok(value) => Ok(decode::Decoded { value, ..decode::Decoded::default() }),
                // Clients that may also speak JSON (all do) then try that.
                Err(protobuf::DecodeError::Unknown { .. }) => Err(StatusError::unsupported_media_type(&SERVED)),
                Err(why) => Err(decode::unrecognized(kind, &why.to_string(), bytes)),
            };
        }
    };
    decoded.map_err(|why| decode::unrecognized(kind, &why.to_string(), bytes))
}

/// Makes `decoded` an object of `row`: right kind and version, known fields, right types, defaults set.
pub fn conform(server: &ApiServer, call: &mut Call, options: &WriteOptions, decoded: decode::Decoded) -> Result<Value> {
    let row = call.row.clone();
    let mut object = decoded.value;
    check_kind(&row, &mut object)?;
    let warnings = row.check(&mut object, &decoded.duplicates, options.field_validation)?;
    call.warnings.extend(warnings);
    set_defaults(server, &row, &mut object);
    Ok(object)
}

/// Schema defaults, then those that depend on other fields.
pub fn set_defaults(server: &ApiServer, row: &ResourceRow, object: &mut Value) {
    default(&row.schema, row.root, object);
    if let Some(strategy) = server.strategies.get(row) {
        strategy.default(object);
    }
}

/// `apiVersion` and `kind` must be the row's, or absent.
pub fn check_kind(row: &ResourceRow, object: &mut Value) -> Result<()> {
    let Some(map) = object.as_object_mut() else {
        return Err(StatusError::bad_request("the body of the request must be a JSON object"));
    };
    let api_version = row.api_version();
    let sent_version = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let sent_kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !sent_kind.is_empty() && sent_kind != &*row.kind {
        return Err(StatusError::bad_request(format!(
            "{sent_kind} in version {:?} cannot be handled as a {}: no kind {sent_kind:?} is registered for this path",
            row.version, row.kind
        )));
    }
    if !sent_version.is_empty() && sent_version != api_version {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({sent_version}) does not match the expected API version ({api_version})"
        )));
    }
    map.insert("apiVersion".to_owned(), json!(api_version));
    map.insert("kind".to_owned(), json!(row.kind));
    Ok(())
}
