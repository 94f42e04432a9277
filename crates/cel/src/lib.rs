//! CEL, the Common Expression Language, as Kubernetes v1.37 has it: what cel-go accepts, with its words and its costs.
//!
//! So far: [`parse`], from text to a syntax tree with macros written out, and [`Env::compile`], which checks its types against
//! CEL's standard functions and those of optionals. Pure: nothing here does I/O. Must not know: admission,
//! custom resources, policies.
//!
//! Where this differs from cel-go: syntax errors are found at the same places, but worded by this parser, not by ANTLR's.

mod ast;
mod check;
mod declarations;
mod env;
mod lexer;
mod macros;
mod parser;
mod source;
mod types;

#[cfg(test)]
mod tests;

use std::fmt;

pub use env::{Checked, Env};
pub use types::{Fields, ObjectType, Type};

/// A text that follows CEL's grammar; nothing is known of its types.
///
/// Shown (`Display`) as nested calls, operators by their functions' names, comprehensions as `fold(…)`.
#[derive(Clone, Debug)]
pub struct Ast {
    root: ast::Expr,
}

impl fmt::Display for Ast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

/// Why a text is no CEL, or its types do not fit: each fault as cel-go shows it, with its line and a mark below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(String);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Faults {}

/// Parses `source`, which may be any text: its length (100,000 characters), its nesting (250) and what its macros expand to are bounded.
pub fn parse(source: &str) -> Result<Ast, Faults> {
    match parser::parse(source) {
        Ok((root, _)) => Ok(Ast { root }),
        Err(issues) => Err(Faults(source::render(source, issues))),
    }
}
