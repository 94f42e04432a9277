//! Environments: which variables and types a text may name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::Expr;
use crate::check::check;
use crate::parser::parse;
use crate::source::render;
use crate::types::{ObjectType, Type};
use crate::{Ast, Faults};

/// Variables and types of texts; functions are CEL's standard ones and those of optionals.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: HashMap<Box<str>, Type>,
    structs: HashMap<Box<str>, Arc<ObjectType>>,
}

/// A text whose types fit.
#[derive(Clone, Debug)]
pub struct Checked {
    root: Expr,
    result: Type,
}

impl Env {
    /// The environment with a variable more.
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.insert(name.into(), ty);
        self
    }

    /// The environment with a type more, whose objects texts may make: `Name{field: value}`.
    pub fn with_object(mut self, ty: ObjectType) -> Self {
        self.structs.insert(ty.name.clone(), Arc::new(ty));
        self
    }

    /// Parses and checks `source`. The error has all faults of the first stage that found any, as cel-go shows them.
    pub fn compile(&self, source: &str) -> Result<Checked, Faults> {
        let fault = |issues| Faults(render(source, issues));
        let (mut root, ids) = parse(source).map_err(fault)?;
        let result = check(self, &mut root, ids).map_err(fault)?;
        Ok(Checked { root, result })
    }

    pub(crate) fn variable_named(&self, name: &str) -> Option<&Type> {
        self.variables.get(name)
    }

    pub(crate) fn type_named(&self, name: &str) -> Option<Type> {
        if let Some(primitive) = Type::primitive(name) {
            return Some(primitive);
        }
        Some(match name {
            "null_type" => Type::Null,
            "list" => Type::list(Type::Dyn),
            "map" => Type::map(Type::Dyn, Type::Dyn),
            "type" => Type::Type(None),
            "optional_type" => Type::optional(Type::Dyn),
            "google.protobuf.Duration" => Type::Duration,
            "google.protobuf.Timestamp" => Type::Timestamp,
            name => Type::Object(self.struct_named(name)?),
        })
    }

    pub(crate) fn struct_named(&self, name: &str) -> Option<Arc<ObjectType>> {
        self.structs.get(name).cloned()
    }
}

impl Checked {
    /// The type of its value.
    pub fn result(&self) -> &Type {
        &self.result
    }

    /// Its tree, names of types and of functions in namespaces made one name each.
    pub fn into_ast(self) -> Ast {
        Ast { root: self.root }
    }
}
