//! Types of expressions, and how they are written in messages.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The type of an expression, as the checker knows it.
#[derive(Clone, Debug)]
pub enum Type {
    /// Known at run time only.
    Dyn,
    /// Of an expression with a fault that has been reported.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// A type as a value; what it is the type of, if that is known.
    Type(Option<Arc<Type>>),
    Optional(Arc<Type>),
    /// A library's type that is not an object to cel-go: `net.IP` and `net.CIDR`.
    Opaque(&'static str),
    Object(Arc<ObjectType>),
    /// A parameter of an overload's declaration.
    Param(char),
    /// A parameter of one use of an overload.
    Var(u32),
}

/// An object with named fields, and the same as another by its name.
#[derive(Debug)]
pub struct ObjectType {
    pub name: Box<str>,
    pub fields: Fields,
}

#[derive(Debug)]
pub enum Fields {
    /// By their escaped names.
    Declared(BTreeMap<Box<str>, Type>),
    /// Any name, of a type that is known at run time.
    Any,
}

impl Type {
    /// The type of literals that CEL calls so.
    pub(crate) fn primitive(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            _ => return None,
        })
    }

    pub fn list(item: Type) -> Self {
        Type::List(Arc::new(item))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new((key, value)))
    }

    pub fn optional(value: Type) -> Self {
        Type::Optional(Arc::new(value))
    }

    pub fn object(name: &str, fields: BTreeMap<Box<str>, Type>) -> Self {
        Type::Object(Arc::new(ObjectType { name: name.into(), fields: Fields::Declared(fields) }))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn)
    }

    /// The type's name without its parameters, as `type(x)` has it at run time.
    pub fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Error => "!error!",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(_) => "list",
            Type::Map(_) => "map",
            Type::Type(_) => "type",
            Type::Optional(_) => "optional_type",
            Type::Opaque(name) => name,
            Type::Object(object) => &object.name,
            Type::Param(_) | Type::Var(_) => "dyn",
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a == b,
            (Type::Map(a), Type::Map(b)) => a == b,
            (Type::Type(a), Type::Type(b)) => a == b,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::Param(a), Type::Param(b)) => a == b,
            (Type::Var(a), Type::Var(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}
impl Eq for Type {}

/// As cel-go's messages write it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Null => f.write_str("null"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(pair) => write!(f, "map({}, {})", pair.0, pair.1),
            Type::Type(Some(of)) => write!(f, "type({of})"),
            Type::Optional(value) => write!(f, "optional_type({value})"),
            Type::Param(name) => write!(f, "{name}"),
            Type::Var(number) => write!(f, "_var{number}"),
            other => f.write_str(other.name()),
        }
    }
}
