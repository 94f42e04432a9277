//! The schema engine: one description of a type drives decoding checks, field validation, pruning, defaulting, the three merge
//! patches, server-side apply, OpenAPI v2 and v3 and `kubectl explain`.
//!
//! A [`Schema`] is an arena of [`Type`]s, so recursive definitions (JSONSchemaProps) need no special care. Built-in kinds share
//! one schema, loaded from generated data ([`builtin`]); a CustomResourceDefinition version compiles to a schema of its own.

mod builtin;
pub mod check;
mod crd;
pub mod decode;
pub mod default;
#[cfg(test)]
mod fuzz;
mod gojson;
mod scalar;
pub mod validate;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::Value;

pub use builtin::{builtin, builtin_fingerprint};
pub use check::{CheckError, Checked, FieldValidation, check};
pub use crd::compile_crd_schema;
pub use default::default;
pub use validate::validate;

/// Nesting beyond which a document is refused and a walk stops. Decoding enforces it; walks repeat it for values made elsewhere.
pub const MAX_DEPTH: usize = 100;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// Empty for the core group.
    pub group: Box<str>,
    pub version: Box<str>,
    pub kind: Box<str>,
}

impl GroupVersionKind {
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        GroupVersionKind { group: group.into(), version: version.into(), kind: kind.into() }
    }
}

/// An arena of types, with the named ones indexed.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    pub types: Vec<Type>,
    /// True for a CustomResourceDefinition's schema: its own types ([`Type::structural`]) are checked by validation, in upstream's
    /// wording for structural schemas, and not by decoding. Those of ObjectMeta in it are built-in types all the same.
    pub structural: bool,
    /// Some field has a default.
    pub has_defaults: bool,
    /// CRDs only: what was compiled, as JSON text, for publication.
    pub source: Option<Box<str>>,
    names: HashMap<Box<str>, TypeId>,
    kinds: HashMap<GroupVersionKind, TypeId>,
}

impl Schema {
    /// Indexes `types` by name and by group, version and kind. The first of two equal names wins.
    pub fn new(types: Vec<Type>) -> Self {
        let has_default = |ty: &Type| match &ty.shape {
            Shape::Object(object) => object.fields.iter().any(|field| field.default.is_some()),
            _ => false,
        };
        let mut schema = Schema { has_defaults: types.iter().any(has_default), types, ..Schema::default() };
        for (i, ty) in schema.types.iter().enumerate() {
            let id = TypeId(u32::try_from(i).expect("a schema has fewer than 2^32 types"));
            if !ty.name.is_empty() {
                schema.names.entry(ty.name.clone()).or_insert(id);
            }
            for gvk in &ty.gvks {
                schema.kinds.entry(gvk.clone()).or_insert(id);
            }
        }
        schema
    }

    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The definition of that name (`io.k8s.api.core.v1.PodSpec`).
    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        self.kinds.get(&GroupVersionKind::new(group, version, kind)).copied()
    }

    /// The object's fields, if that type is an object with fields.
    pub fn object(&self, id: TypeId) -> Option<&Object> {
        match &self.get(id).shape {
            Shape::Object(object) => Some(object),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Type {
    /// The published definition's name (`io.k8s.api.core.v1.PodSpec`); empty for inline types.
    pub name: Box<str>,
    pub shape: Shape,
    /// `x-kubernetes-group-version-kind`.
    pub gvks: Vec<GroupVersionKind>,
    /// Checks on every value of this type, wherever it stands (CRDs; built-in types carry theirs on the field).
    pub rules: Vec<Rule>,
    /// Written by a CustomResourceDefinition's author, and not built in.
    pub structural: bool,
    /// CRDs only: an explicit null is a value of this type.
    pub nullable: bool,
}

impl Type {
    pub fn named(name: &str, shape: Shape) -> Self {
        Type { name: name.into(), shape, gvks: Vec::new(), rules: Vec::new(), structural: false, nullable: false }
    }

    pub fn inline(shape: Shape) -> Self {
        Type::named("", shape)
    }
}

#[derive(Clone, Debug)]
pub enum Shape {
    Object(Object),
    /// String keys, one value type. `atomic`: server-side apply owns the whole map.
    Map {
        value: TypeId,
        atomic: bool,
    },
    List(List),
    Scalar(Scalar),
    /// Any JSON (`RawExtension`, `JSON`, `x-kubernetes-preserve-unknown-fields` without a type). Atomic for apply.
    Any,
}

#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Sorted by name, for binary search.
    pub fields: Vec<Field>,
    /// `x-kubernetes-preserve-unknown-fields`: unknown fields are kept and not reported.
    pub preserve_unknown: bool,
    /// `x-kubernetes-map-type: atomic` (selectors, references): apply owns it whole.
    pub atomic: bool,
    /// `x-kubernetes-embedded-resource`: has apiVersion, kind and metadata of its own.
    pub embedded: bool,
    /// Value type of unknown keys, where an object has both properties and additionalProperties.
    pub additional: Option<TypeId>,
}

impl Object {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok().map(|i| &self.fields[i])
    }
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: Box<str>,
    pub ty: TypeId,
    pub required: bool,
    /// CRDs only: an explicit null is a value (`nullable: true`). For built-in kinds null means absent.
    pub nullable: bool,
    /// Set when absent, after decoding.
    pub default: Option<Value>,
    /// The default holds only where a sibling has one of these values. Other conditions are a strategy's.
    pub default_when: Option<When>,
    /// The default also replaces an explicit zero, which upstream's decoding cannot tell from absent.
    pub default_for_zero: bool,
    /// Strategic merge of a list or map.
    pub patch: PatchStrategy,
    /// Checks on a present value, as data. Cross-field rules are a strategy's.
    pub rules: Vec<Rule>,
}

impl Field {
    pub fn new(name: &str, ty: TypeId) -> Self {
        Field {
            name: name.into(),
            ty,
            required: false,
            nullable: false,
            default: None,
            default_when: None,
            default_for_zero: false,
            patch: PatchStrategy::default(),
            rules: Vec::new(),
        }
    }
}

/// A condition on a sibling field that holds a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    pub sibling: Box<str>,
    pub any_of: Vec<Box<str>>,
}

/// `x-kubernetes-patch-strategy` and `x-kubernetes-patch-merge-key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists: merge by `merge_key`, or as a set of scalars when there is no key. Without it, a list is replaced.
    pub merge: bool,
    pub retain_keys: bool,
    /// A map that is replaced as a whole.
    pub replace: bool,
    pub merge_key: Option<Box<str>>,
}

#[derive(Clone, Debug)]
pub struct List {
    pub item: TypeId,
    pub kind: ListKind,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    Map { keys: Vec<Box<str>> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    /// Base64 text.
    Bytes,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with six digits of fraction.
    MicroTime,
    Quantity,
    IntOrString,
    Bool,
    Int32,
    Int64,
    Double,
}

/// A check on one field's value, as data; wording as upstream's validators.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Absent is refused, and so are the zero values that upstream's decoding cannot tell from absent (`""`, `{}`, `[]`).
    Required,
    /// Absent is refused; any value will do.
    Present,
    /// [`Rule::Required`] with a reason.
    RequiredBecause(Box<str>),
    Enum(Vec<Box<str>>),
    /// One of these strings, refused with this text otherwise.
    OneOf {
        values: Vec<Box<str>>,
        detail: Box<str>,
    },
    /// Inclusive bounds of a number, refused with this text otherwise.
    Bounded {
        min: i64,
        max: i64,
        detail: Box<str>,
    },
    /// No two items of a list have this key's value in common.
    UniqueBy(Box<str>),
    /// A port's name (IANA service name).
    PortName,
    HttpHeaderName,
    /// A label's value.
    LabelValue,
    /// A host name, whose first label may be `*`.
    WildcardHost,
    /// A number not below zero, or a percentage.
    CountOrPercent,
    /// User and group ids.
    UserId,
    /// Inclusive bounds of a number.
    Range {
        min: Option<f64>,
        max: Option<f64>,
    },
    MinLength(usize),
    MaxLength(usize),
    MinItems(usize),
    MaxItems(usize),
    Pattern(Pattern),
    MaxProperties(usize),
    MinProperties(usize),
    UniqueItems,
    /// A structural schema's `multipleOf`.
    MultipleOf(f64),
    /// A rule over the fields of one small object.
    Compound(Compound),
    /// A structural schema's `allOf`, `anyOf`, `oneOf` and `not`: types that hold value validations only.
    Junction(Junction, Vec<TypeId>),
    /// Exclusive bounds of a number.
    Between {
        above: Option<f64>,
        below: Option<f64>,
    },
    DnsLabel,
    DnsSubdomain,
    /// RFC 1035 label (Service names).
    Dns1035Label,
    /// A qualified name (label keys, resource names).
    QualifiedName,
    /// Every key and value of a label map.
    Labels,
    AnnotationKeys,
    EnvVarName,
    /// `metav1.LabelSelector` is well-formed.
    LabelSelector,
    NonNegativeQuantity,
    PortNumber,
    /// IANA service name or number 1..=65535.
    PortNameOrNumber,
    IpAddress,
    Cidr,
    AbsolutePath,
    ConfigMapKey,
}

/// Objects whose fields depend on each other. Named for the type that each is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compound {
    EnvVar,
    IngressBackend,
    Lifecycle,
    NetworkPolicyPeer,
    NodeField,
    NodeSelector,
    PolicyRule,
    Probe,
    Resources,
    ServiceBackendPort,
    Subject,
    Toleration,
    Volume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junction {
    All,
    Any,
    One,
    Not,
}

/// A regular expression in RE2's syntax, compiled at first use and shared by clones.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Arc<str>,
    compiled: Arc<OnceLock<Option<Regex>>>,
}

impl Pattern {
    pub fn new(text: &str) -> Self {
        Pattern { text: text.into(), compiled: Arc::default() }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `None` if the expression itself is invalid.
    pub fn is_match(&self, text: &str) -> Option<bool> {
        self.compiled.get_or_init(|| Regex::new(&self.text).ok()).as_ref().map(|regex| regex.is_match(text))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
