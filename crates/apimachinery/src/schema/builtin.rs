//! Loads the schema of the built-in kinds from the data files of this crate.
//!
//! `schema.txt` is generated from upstream's published OpenAPI (`cargo xtask codegen`); `defaults.txt` and `rules.txt` are written by
//! hand. All three are part of the program, so a fault in them is a fault of the build and panics at first use; tests load them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::{
    Compound, Field, GroupVersionKind, List, ListKind, Object, PatchStrategy, Rule, Scalar, Schema, Shape, Type,
    TypeId, When,
};

const SCHEMA: &str = include_str!("../../data/schema.txt");
const DEFAULTS: &str = include_str!("../../data/defaults.txt");
const RULES: &str = include_str!("../../data/rules.txt");

/// The schema that all built-in kinds share, loaded once.
pub fn builtin() -> &'static Arc<Schema> {
    static BUILTIN: OnceLock<Arc<Schema>> = OnceLock::new();
    BUILTIN.get_or_init(|| {
        let schema = load(SCHEMA, DEFAULTS, RULES);
        Arc::new(schema.unwrap_or_else(|fault| panic!("the built-in schema data is malformed: {fault}")))
    })
}

/// Changes when the data files do; for caches of what is made from the built-in schema.
pub fn builtin_fingerprint() -> u64 {
    static FINGERPRINT: OnceLock<u64> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        (SCHEMA, DEFAULTS, RULES).hash(&mut hasher);
        hasher.finish()
    })
}

fn load(schema: &str, defaults: &str, rules: &str) -> Result<Schema, String> {
    let mut loader = Loader::default();
    loader.definitions(schema)?;
    loader.annotate(defaults, "defaults.txt", set_default)?;
    loader.annotate(rules, "rules.txt", add_rules)?;
    Ok(Schema::new(loader.types))
}

/// Lines of a data file that carry data, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[derive(Default)]
struct Loader<'a> {
    types: Vec<Type>,
    /// Definitions and inline types by their text, with the package for what is relative to one.
    ids: HashMap<(&'a str, &'a str), TypeId>,
    /// Variants of a definition that differ in `atomic`: made once all definitions are known.
    variants: Vec<(TypeId, TypeId)>,
    /// Variants of a definition that one field alone has: by the definition with that field, and the field.
    private: HashMap<(TypeId, Box<str>), TypeId>,
}

impl<'a> Loader<'a> {
    fn push(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(u32::try_from(self.types.len() - 1).expect("data files are smaller than 2^32 lines"))
    }

    fn definitions(&mut self, text: &'a str) -> Result<(), String> {
        self.declare(text)?;
        let mut package = "";
        let mut current = None;
        for (number, line) in lines(text) {
            let at = |fault: String| format!("schema.txt:{number}: {fault}");
            if let Some(name) = line.strip_prefix("package ") {
                package = name;
            } else if let Some(rest) = line.strip_prefix(' ') {
                let owner: TypeId = current.ok_or_else(|| at("a field outside a definition".into()))?;
                let field = self.field(package, rest).map_err(at)?;
                let Shape::Object(object) = &mut self.types[owner.0 as usize].shape else {
                    return Err(at("a field of a scalar".into()));
                };
                object.fields.push(field);
            } else {
                let name = line.split(' ').next().unwrap_or_default();
                current = self.ids.get(&(package, name)).copied();
            }
        }
        for (variant, original) in std::mem::take(&mut self.variants) {
            let mut object = match &self.types[original.0 as usize].shape {
                Shape::Object(object) => object.clone(),
                _ => return Err(format!("a granular variant of {}", self.types[original.0 as usize].name)),
            };
            object.atomic = false;
            self.types[variant.0 as usize].shape = Shape::Object(object);
        }
        Ok(())
    }

    /// First pass: every definition gets its id, so that references may point forward.
    fn declare(&mut self, text: &'a str) -> Result<(), String> {
        let mut package = "";
        for (number, line) in lines(text) {
            if let Some(name) = line.strip_prefix("package ") {
                package = name;
            } else if !line.starts_with(' ') {
                let mut words = line.split(' ');
                let name = words.next().unwrap_or_default();
                let ty = definition(package, name, words).map_err(|fault| format!("schema.txt:{number}: {fault}"))?;
                let id = self.push(ty);
                self.ids.insert((package, name), id);
            }
        }
        Ok(())
    }

    /// `name[!] TYPE [merge[=key]] [retainKeys] [replace]`
    fn field(&mut self, package: &'a str, line: &'a str) -> Result<Field, String> {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let ty = self.resolve(package, words.next().ok_or("a field without a type")?)?;
        let mut field = Field::new(name.trim_end_matches('!'), ty);
        field.required = name.ends_with('!');
        for word in words {
            field.patch = match (word, word.split_once('=')) {
                ("merge", _) => PatchStrategy { merge: true, ..field.patch },
                ("retainKeys", _) => PatchStrategy { retain_keys: true, ..field.patch },
                ("replace", _) => PatchStrategy { replace: true, ..field.patch },
                (_, Some(("merge", key))) => PatchStrategy { merge: true, merge_key: Some(key.into()), ..field.patch },
                _ => return Err(format!("unknown word {word:?}")),
            };
        }
        Ok(field)
    }

    /// A type expression: a scalar's name, a definition's, `[…]T` for lists, `{}T` and `{atomic}T` for maps, `~T` for the granular
    /// variant of an atomic definition.
    fn resolve(&mut self, package: &'a str, text: &'a str) -> Result<TypeId, String> {
        let scope = if text.contains(|c: char| c.is_ascii_uppercase()) { package } else { "" };
        if let Some(id) = self.ids.get(&(scope, text)) {
            return Ok(*id);
        }
        let id = if let Some((kind, item)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
            let item = self.resolve(package, item)?;
            let kind = match kind.strip_prefix("map:") {
                Some(keys) => ListKind::Map { keys: keys.split(',').map(Into::into).collect() },
                None if kind == "set" => ListKind::Set,
                None if kind.is_empty() => ListKind::Atomic,
                None => return Err(format!("unknown list type in {text:?}")),
            };
            self.push(Type::inline(Shape::List(List { item, kind })))
        } else if let Some((kind, value)) = text.strip_prefix('{').and_then(|t| t.split_once('}')) {
            let value = self.resolve(package, value)?;
            self.push(Type::inline(Shape::Map { value, atomic: kind == "atomic" }))
        } else if let Some(original) = text.strip_prefix('~') {
            let original = self.resolve(package, original)?;
            let name = self.types[original.0 as usize].name.clone();
            let variant = self.push(Type::named(&name, Shape::Any));
            self.variants.push((variant, original));
            variant
        } else if let Some((package, name)) = text.rsplit_once('.') {
            return self.ids.get(&(package, name)).copied().ok_or_else(|| format!("no definition {text:?}"));
        } else if let Some(shape) = scalar(text) {
            self.push(Type::inline(shape))
        } else {
            return Err(format!("no type {text:?}"));
        };
        self.ids.insert((scope, text), id);
        Ok(id)
    }

    /// Lines `package P` and `Definition field REST`; `apply` puts REST on the field, in every variant of the definition.
    fn annotate(
        &mut self,
        text: &str,
        file: &str,
        apply: fn(&mut Field, &str) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut by_name: HashMap<Box<str>, Vec<TypeId>> = HashMap::new();
        for (ty, id) in self.types.iter().zip(0..).filter(|(ty, _)| !ty.name.is_empty()) {
            by_name.entry(ty.name.clone()).or_default().push(TypeId(id));
        }
        let mut package = "";
        for (number, line) in lines(text) {
            if let Some(name) = line.strip_prefix("package ") {
                package = name;
                continue;
            }
            let at = |fault: String| format!("{file}:{number}: {fault}");
            let mut words = line.splitn(3, ' ');
            let (Some(definition), Some(path), Some(rest)) = (words.next(), words.next(), words.next()) else {
                return Err(at("want: Definition field …".into()));
            };
            let ids = by_name.get(format!("{package}.{definition}").as_str());
            for id in ids.ok_or_else(|| at(format!("no definition {definition:?}")))? {
                apply(self.field_at(*id, path).map_err(at)?, rest).map_err(at)?;
            }
        }
        Ok(())
    }

    /// The field at a dotted path. Definitions on the way are copied, so that the change holds below that field alone.
    fn field_at(&mut self, owner: TypeId, path: &str) -> Result<&mut Field, String> {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let Shape::Object(object) = &mut self.types[owner.0 as usize].shape else {
            return Err(format!("no fields above {path:?}"));
        };
        let index = object.fields.iter().position(|f| &*f.name == name).ok_or_else(|| format!("no field {name:?}"))?;
        if let Some(rest) = rest {
            let shared = object.fields[index].ty;
            let key = (owner, Box::from(name));
            let own = match self.private.get(&key) {
                Some(own) => *own,
                None => {
                    let own = self.push(self.types[shared.0 as usize].clone());
                    self.private.insert(key, own);
                    own
                }
            };
            if let Shape::Object(object) = &mut self.types[owner.0 as usize].shape {
                object.fields[index].ty = own;
            }
            return self.field_at(own, rest);
        }
        match &mut self.types[owner.0 as usize].shape {
            Shape::Object(object) => Ok(&mut object.fields[index]),
            _ => Err(format!("no fields above {path:?}")),
        }
    }
}

/// `Name [=SCALAR] [atomic] [gvk=group/version/Kind,…]`
fn definition<'a>(package: &str, name: &str, words: impl Iterator<Item = &'a str>) -> Result<Type, String> {
    let mut ty = Type::named(&format!("{package}.{name}"), Shape::Object(Object::default()));
    for word in words {
        if let Some(text) = word.strip_prefix('=') {
            ty.shape = scalar(text).ok_or_else(|| format!("unknown scalar {text:?}"))?;
        } else if let Some(gvks) = word.strip_prefix("gvk=") {
            ty.gvks = gvks.split(',').map(gvk).collect::<Result<_, _>>()?;
        } else if let (Shape::Object(object), "atomic") = (&mut ty.shape, word) {
            object.atomic = true;
        } else {
            return Err(format!("unknown word {word:?}"));
        }
    }
    Ok(ty)
}

fn gvk(text: &str) -> Result<GroupVersionKind, String> {
    let mut parts = text.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(group), Some(version), Some(kind)) => Ok(GroupVersionKind::new(group, version, kind)),
        _ => Err(format!("want group/version/Kind, not {text:?}")),
    }
}

fn scalar(text: &str) -> Option<Shape> {
    Some(Shape::Scalar(match text {
        "any" => return Some(Shape::Any),
        "string" => Scalar::String,
        "bytes" => Scalar::Bytes,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "quantity" => Scalar::Quantity,
        "intorstring" => Scalar::IntOrString,
        _ => return None,
    }))
}

/// `JSON [or zero] [if sibling=a|b]`
fn set_default(field: &mut Field, text: &str) -> Result<(), String> {
    let (json, when) = match text.split_once(" if ") {
        Some((json, condition)) => {
            let (sibling, values) = condition.split_once('=').ok_or("want: if sibling=a|b")?;
            (json, Some(When { sibling: sibling.into(), any_of: values.split('|').map(Into::into).collect() }))
        }
        None => (text, None),
    };
    if field.default.is_some() {
        return Err("a second default".into());
    }
    field.default_for_zero = json.ends_with(" or zero");
    let json = json.trim_end_matches(" or zero");
    field.default = Some(serde_json::from_str::<Value>(json).map_err(|e| format!("{json}: {e}"))?);
    field.default_when = when;
    Ok(())
}

/// Rules separated by `; `.
fn add_rules(field: &mut Field, text: &str) -> Result<(), String> {
    for rule in text.split("; ") {
        field.rules.push(parse_rule(rule)?);
    }
    Ok(())
}

/// `NAME [ARGUMENT] [: TEXT]`
fn parse_rule(text: &str) -> Result<Rule, String> {
    let (rule, detail) = text.split_once(" : ").map_or((text, None), |(rule, detail)| (rule, Some(detail)));
    let (name, argument) = rule.split_once(' ').unwrap_or((rule, ""));
    if let Some(detail) = detail {
        return detailed_rule(name, argument, detail.into());
    }
    let number = || argument.parse::<usize>().map_err(|e| format!("{text:?}: {e}"));
    let bound =
        |text: &str| (!text.is_empty()).then(|| text.parse::<f64>()).transpose().map_err(|e| format!("{text:?}: {e}"));
    Ok(match name {
        "required" => Rule::Required,
        "enum" => Rule::Enum(values(argument)),
        "range" => {
            let (min, max) = argument.split_once("..").ok_or("want: range min..max")?;
            Rule::Range { min: bound(min)?, max: bound(max)? }
        }
        "above" => Rule::Between { above: bound(argument)?, below: None },
        "max-length" => Rule::MaxLength(number()?),
        "min-items" => Rule::MinItems(number()?),
        "max-items" => Rule::MaxItems(number()?),
        "unique" => Rule::UniqueBy(argument.into()),
        "check" => Rule::Compound(compound(argument).ok_or_else(|| format!("unknown check {argument:?}"))?),
        "absolute-path" => Rule::AbsolutePath,
        "annotations" => Rule::AnnotationKeys,
        "cidr" => Rule::Cidr,
        "config-map-key" => Rule::ConfigMapKey,
        "count-or-percent" => Rule::CountOrPercent,
        "dns-1035-label" => Rule::Dns1035Label,
        "dns-label" => Rule::DnsLabel,
        "dns-subdomain" => Rule::DnsSubdomain,
        "env-name" => Rule::EnvVarName,
        "http-header" => Rule::HttpHeaderName,
        "ip" => Rule::IpAddress,
        "label-selector" => Rule::LabelSelector,
        "label-value" => Rule::LabelValue,
        "labels" => Rule::Labels,
        "port" => Rule::PortNumber,
        "port-name" => Rule::PortName,
        "port-or-name" => Rule::PortNameOrNumber,
        "qualified-name" => Rule::QualifiedName,
        "quantity" => Rule::NonNegativeQuantity,
        "user-id" => Rule::UserId,
        "wildcard-host" => Rule::WildcardHost,
        _ => return Err(format!("unknown rule {text:?}")),
    })
}

fn compound(name: &str) -> Option<Compound> {
    Some(match name {
        "env-var" => Compound::EnvVar,
        "ingress-backend" => Compound::IngressBackend,
        "lifecycle" => Compound::Lifecycle,
        "network-policy-peer" => Compound::NetworkPolicyPeer,
        "node-field" => Compound::NodeField,
        "node-selector" => Compound::NodeSelector,
        "policy-rule" => Compound::PolicyRule,
        "probe" => Compound::Probe,
        "resources" => Compound::Resources,
        "service-backend-port" => Compound::ServiceBackendPort,
        "subject" => Compound::Subject,
        "toleration" => Compound::Toleration,
        "volume" => Compound::Volume,
        _ => return None,
    })
}

fn detailed_rule(name: &str, argument: &str, detail: Box<str>) -> Result<Rule, String> {
    match name {
        "required" => Ok(Rule::RequiredBecause(detail)),
        "enum" => Ok(Rule::OneOf { values: values(argument), detail }),
        "range" => {
            let (min, max) = argument.split_once("..").ok_or("want: range min..max")?;
            let bound = |text: &str, open: i64| if text.is_empty() { Ok(open) } else { text.parse() };
            match (bound(min, i64::MIN), bound(max, i64::MAX)) {
                (Ok(min), Ok(max)) => Ok(Rule::Bounded { min, max, detail }),
                _ => Err(format!("bad bounds {argument:?}")),
            }
        }
        _ => Err(format!("rule {name:?} takes no text")),
    }
}

fn values(text: &str) -> Vec<Box<str>> {
    text.split('|').map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every definition's fields, sorted and distinct, as binary search needs.
    #[test]
    fn fields_are_sorted() {
        for ty in &builtin().types {
            if let Shape::Object(object) = &ty.shape {
                assert!(object.fields.is_sorted_by(|a, b| a.name < b.name), "{}", ty.name);
            }
        }
    }

    #[test]
    fn facts_of_a_few_well_known_fields() {
        let schema = builtin();
        let id = schema.by_kind("apps", "v1", "Deployment").unwrap();
        assert_eq!(&*schema.get(id).name, "io.k8s.api.apps.v1.Deployment");
        let spec = schema.object(schema.by_name("io.k8s.api.core.v1.ServiceSpec").unwrap()).unwrap();
        let ports = spec.field("ports").unwrap();
        assert_eq!(ports.patch.merge_key.as_deref(), Some("port"));
        let Shape::List(list) = &schema.get(ports.ty).shape else { panic!("ports is a list") };
        assert_eq!(list.kind, ListKind::Map { keys: vec!["port".into(), "protocol".into()] });
        let selector = schema.get(spec.field("selector").unwrap().ty);
        assert!(matches!(selector.shape, Shape::Map { atomic: true, .. }));
        // The same definition is atomic as a reference and granular as a claim.
        let volume = schema.object(schema.by_name("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap()).unwrap();
        assert!(!schema.object(volume.field("claimRef").unwrap().ty).unwrap().atomic);
    }

    #[test]
    fn faults_name_the_line() {
        let fault = load("package p\nA\n x nonsense\n", "", "").unwrap_err();
        assert_eq!(fault, "schema.txt:3: no type \"nonsense\"");
        let fault = load("package p\nA\n x string\n", "package p\nA y 1\n", "").unwrap_err();
        assert_eq!(fault, "defaults.txt:2: no field \"y\"");
    }
}
