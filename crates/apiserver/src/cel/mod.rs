//! CEL as the API server's configuration uses it: expressions are compiled once, and evaluated over variables that are JSON.
//!
//! Kubernetes' extension functions are those of `kube-cel`. Must not know: admission, what the variables mean.

mod authorizer;
mod objects;
#[cfg(test)]
mod tests;
mod value;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::IdedExpr;
use kube_cel::cel::{Context, Program, Value as CelValue};

pub use authorizer::{authorizer, request_resource};
pub use objects::{REQUEST_RESOURCE, TYPE};
pub use value::{from_json, to_json};

/// An expression that can be evaluated.
pub struct Expression {
    source: Box<str>,
    program: Program,
    /// What is evaluated.
    tree: IdedExpr,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expression({:?})", self.source)
    }
}

/// Names that every expression may use without being told: CEL's types.
const TYPES: [&str; 14] = [
    "bool",
    "bytes",
    "double",
    "dyn",
    "duration",
    "google",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
];

impl Expression {
    /// Parses `source`, whose free variables must be among `variables`. The error is worded as cel-go's issues, which upstream
    /// reports.
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, String> {
        Self::compile_making(source, variables, |_| false)
    }

    /// As [`Expression::compile`], of an expression that may make objects of those types that `makes` knows. Their values are maps that
    /// have their type's name as [`TYPE`].
    pub fn compile_making(source: &str, variables: &[&str], makes: fn(&str) -> bool) -> Result<Self, String> {
        let program = Program::compile(source).map_err(|errors| errors.to_string().replace("\n| ", "\n | "))?;
        let mut unknown: Vec<&str> = value::free_variables(program.expression());
        unknown.retain(|name| !variables.contains(name) && !TYPES.contains(name) && !name.starts_with('@'));
        if let Some(name) = unknown.first() {
            return Err(undeclared(source, name));
        }
        if let Some(name) = objects::types(program.expression()).iter().find(|name| !makes(name)) {
            return Err(undeclared(source, name));
        }
        let tree = objects::rewritten(program.expression());
        Ok(Expression { source: source.into(), program, tree })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression names a variable.
    pub fn mentions(&self, variable: &str) -> bool {
        value::free_variables(self.program.expression()).contains(&variable)
    }

    /// Evaluates over `variables`. The error is that of the evaluation.
    pub fn evaluate(&self, variables: &[(&str, CelValue)]) -> Result<CelValue, String> {
        ROOT.with(|root| {
            let mut scope = root.new_inner_scope();
            for (name, value) in variables {
                scope.add_variable_from_value(*name, value.clone());
            }
            CelValue::resolve(&self.tree, &scope).map_err(|error| value::words(&error))
        })
    }

    /// As [`Expression::evaluate`], of an expression that must be true or false.
    pub fn test(&self, variables: &[(&str, CelValue)]) -> Result<bool, String> {
        match self.evaluate(variables)? {
            CelValue::Bool(outcome) => Ok(outcome),
            other => Err(format!("expected a bool, got {}", other.type_of())),
        }
    }
}

thread_local! {
    /// All functions, registered once for each thread.
    static ROOT: Context<'static> = {
        let mut root = Context::default().with_all();
        authorizer::register(&mut root);
        root
    };
}

/// cel-go's words, with the place where the name stands first.
fn undeclared(source: &str, name: &str) -> String {
    let at = value::find_word(source, name);
    let line = source[..at].matches('\n').count() + 1;
    let start = source[..at].rfind('\n').map_or(0, |end| end + 1);
    let text = source[start..].lines().next().unwrap_or_default();
    let column = source[start..at].chars().count() + 1;
    let marker = ".".repeat(column - 1);
    format!(
        "ERROR: <input>:{line}:{column}: undeclared reference to '{name}' (in container '')\n | {text}\n | {marker}^"
    )
}
