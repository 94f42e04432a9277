//! Which form an answer takes, from `Accept`.

use apimachinery::status::{Result, StatusError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// What is put in place of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `meta.k8s.io/v1 Table`
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata` or its list.
    Partial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub encoding: Encoding,
    pub shape: Shape,
}

pub const SERVED: [&str; 2] = ["application/json", "application/yaml"];

/// One clause of an `Accept` header: media type, parameters and quality.
pub struct Clause<'a> {
    pub media: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl Clause<'_> {
    pub fn param(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// The clauses, best quality first; equal ones in the order sent.
pub fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut found: Vec<(f32, Clause<'_>)> = accept
        .split(',')
        .map(|clause| {
            let mut words = clause.split(';').map(str::trim);
            let media = words.next().unwrap_or_default();
            let params: Vec<(&str, &str)> = words.filter_map(|w| w.split_once('=')).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            (quality, Clause { media, params })
        })
        .filter(|(quality, clause)| *quality > 0.0 && !clause.media.is_empty())
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, clause)| clause).collect()
}

/// Chooses among JSON and YAML, plain, as Table or as metadata only. The latter two exist only of what is stored (`shapes`).
pub fn accept(header: Option<&str>, shapes: bool) -> Result<Accepted> {
    let plain = Accepted { encoding: Encoding::Json, shape: Shape::Object };
    let Some(header) = header.filter(|h| !h.trim().is_empty()) else { return Ok(plain) };
    for clause in clauses(header) {
        let encoding = match clause.media {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" | "application/x-yaml" | "text/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let shape = match (clause.param("as"), clause.param("g"), clause.param("v")) {
            (None, _, _) => Shape::Object,
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) if shapes => Shape::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1"))
                if shapes =>
            {
                Shape::Partial
            }
            _ => continue,
        };
        return Ok(Accepted { encoding, shape });
    }
    Err(StatusError::not_acceptable(&SERVED))
}

/// The format of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

pub const TAKEN: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

pub fn body_format(content_type: Option<&str>) -> Result<BodyFormat> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match media {
        "" | "application/json" => Ok(BodyFormat::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(BodyFormat::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyFormat::Protobuf),
        _ => Err(StatusError::unsupported_media_type(&TAKEN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(header: Option<&str>) -> Result<Accepted> {
        super::accept(header, true)
    }

    #[test]
    fn forms() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(Some(table)).unwrap().shape, Shape::Table);
        let only_table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(super::accept(Some(only_table), false).unwrap_err().code, 406);
        let old_table = "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(Some(old_table)).unwrap().shape, Shape::Object);
        let protobuf_first = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(Some(protobuf_first)).unwrap().encoding, Encoding::Json);
        assert_eq!(accept(Some("application/vnd.kubernetes.protobuf")).unwrap_err().code, 406);
        assert_eq!(accept(Some("application/json;q=0.1, application/yaml")).unwrap().encoding, Encoding::Yaml);
    }
}
