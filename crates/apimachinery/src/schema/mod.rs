//! The schema engine: one description of a type drives decoding checks, field validation, pruning, defaulting, the three merge
//! patches, server-side apply, OpenAPI v2 and v3 and `kubectl explain`.
//!
//! A [`Schema`] is an arena of [`Type`]s, so recursive definitions (JSONSchemaProps) need no special care. Built-in kinds share
//! one schema, loaded from generated data ([`builtin`]); a CustomResourceDefinition version compiles to a schema of its own.

use serde_json::Value;

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// An arena of types.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    pub types: Vec<Type>,
}

impl Schema {
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }
}

#[derive(Clone, Debug)]
pub struct Type {
    /// The published definition's name (`io.k8s.api.core.v1.PodSpec`); empty for inline types.
    pub name: Box<str>,
    pub shape: Shape,
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
    /// Set when absent, after decoding. Unconditional defaults only; the others are a strategy's.
    pub default: Option<Value>,
    /// Strategic merge of a list or map.
    pub patch: PatchStrategy,
    /// Checks on a present value, as data. Cross-field rules are a strategy's.
    pub rules: Vec<Rule>,
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
    Enum(Vec<Box<str>>),
    /// Inclusive bounds of a number.
    Range {
        min: Option<f64>,
        max: Option<f64>,
    },
    MinLength(usize),
    MaxLength(usize),
    MinItems(usize),
    MaxItems(usize),
    Pattern(Box<str>),
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
