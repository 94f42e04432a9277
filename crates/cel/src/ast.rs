//! Expressions as they are parsed, macros expanded.

use std::fmt;
use std::sync::Arc;

/// An expression; every one of a program has a number of its own.
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub id: u32,
    /// Where it is told to stand, in characters: an operator's place, not its operands'.
    pub at: u32,
    /// How deep it is nested below: 1 of a leaf.
    pub height: u32,
    pub kind: ExprKind,
}

#[derive(Clone, Debug)]
pub(crate) enum ExprKind {
    Literal(Literal),
    Ident(Box<str>),
    Select(Box<Select>),
    Call(Box<Call>),
    List(Vec<Item>),
    Map(Vec<Entry>),
    Struct(Box<Struct>),
    Fold(Box<Fold>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Box<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub operand: Expr,
    pub field: Box<str>,
    /// Of `has(operand.field)`.
    pub test: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub function: Box<str>,
    pub target: Option<Expr>,
    pub args: Vec<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub name: Box<str>,
    pub fields: Vec<Initializer>,
}

#[derive(Clone, Debug)]
pub(crate) struct Initializer {
    pub at: u32,
    pub name: Box<str>,
    pub value: Expr,
    pub optional: bool,
}

/// A comprehension: `accu = init; for v in range { if !condition break; accu = step }; result`.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub range: Expr,
    pub var: Box<str>,
    pub var2: Option<Box<str>>,
    pub accu: Box<str>,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// The accumulator's name, which no text can spell.
pub(crate) const ACCUMULATOR: &str = "@result";

/// Functions that operators stand for.
pub(crate) mod op {
    pub const CONDITIONAL: &str = "_?_:_";
    pub const AND: &str = "_&&_";
    pub const OR: &str = "_||_";
    pub const NOT: &str = "!_";
    pub const NEGATE: &str = "-_";
    pub const ADD: &str = "_+_";
    pub const EQUALS: &str = "_==_";
    pub const IN: &str = "@in";
    pub const INDEX: &str = "_[_]";
    pub const OPT_INDEX: &str = "_[?_]";
    pub const OPT_SELECT: &str = "_?._";
    pub const NOT_STRICTLY_FALSE: &str = "@not_strictly_false";
    pub const MAP_INSERT: &str = "cel.@mapInsert";
}

impl Expr {
    /// Calls `visit` with every expression directly below.
    pub fn each_child<'e>(&'e self, visit: &mut dyn FnMut(&'e Expr)) {
        match &self.kind {
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
            ExprKind::Select(select) => visit(&select.operand),
            ExprKind::Call(call) => call.target.iter().chain(&call.args).for_each(visit),
            ExprKind::List(items) => items.iter().for_each(|item| visit(&item.value)),
            ExprKind::Map(entries) => entries.iter().for_each(|entry| {
                visit(&entry.key);
                visit(&entry.value);
            }),
            ExprKind::Struct(made) => made.fields.iter().for_each(|field| visit(&field.value)),
            ExprKind::Fold(fold) => {
                let parts = [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result];
                parts.into_iter().for_each(visit);
            }
        }
    }

    pub fn each_child_mut(&mut self, visit: &mut dyn FnMut(&mut Expr)) {
        match &mut self.kind {
            ExprKind::Literal(_) | ExprKind::Ident(_) => {}
            ExprKind::Select(select) => visit(&mut select.operand),
            ExprKind::Call(call) => call.target.iter_mut().chain(&mut call.args).for_each(visit),
            ExprKind::List(items) => items.iter_mut().for_each(|item| visit(&mut item.value)),
            ExprKind::Map(entries) => entries.iter_mut().for_each(|entry| {
                visit(&mut entry.key);
                visit(&mut entry.value);
            }),
            ExprKind::Struct(made) => made.fields.iter_mut().for_each(|field| visit(&mut field.value)),
            ExprKind::Fold(fold) => {
                for part in [&mut fold.range, &mut fold.init, &mut fold.condition, &mut fold.step, &mut fold.result] {
                    visit(part);
                }
            }
        }
    }
}

/// Items with commas between, each optional one behind a `?`.
fn separated<T>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
    show: impl Fn(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            f.write_str(", ")?;
        }
        show(f, item)?;
    }
    Ok(())
}

fn mark(optional: bool) -> &'static str {
    if optional { "?" } else { "" }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ExprKind::Literal(literal) => literal.fmt(f),
            ExprKind::Ident(name) => f.write_str(name),
            ExprKind::Select(s) if s.test => write!(f, "has({}.{})", s.operand, s.field),
            ExprKind::Select(s) => write!(f, "{}.{}", s.operand, s.field),
            ExprKind::Call(call) => {
                if let Some(target) = &call.target {
                    write!(f, "{target}.")?;
                }
                write!(f, "{}(", call.function)?;
                separated(f, &call.args, |f, arg| arg.fmt(f))?;
                f.write_str(")")
            }
            ExprKind::List(items) => {
                f.write_str("[")?;
                separated(f, items, |f, item| write!(f, "{}{}", mark(item.optional), item.value))?;
                f.write_str("]")
            }
            ExprKind::Map(entries) => {
                f.write_str("{")?;
                separated(f, entries, |f, e| write!(f, "{}{}: {}", mark(e.optional), e.key, e.value))?;
                f.write_str("}")
            }
            ExprKind::Struct(made) => {
                write!(f, "{}{{", made.name)?;
                separated(f, &made.fields, |f, e| write!(f, "{}{}: {}", mark(e.optional), e.name, e.value))?;
                f.write_str("}")
            }
            ExprKind::Fold(fold) => {
                write!(f, "fold({}", fold.var)?;
                if let Some(var2) = &fold.var2 {
                    write!(f, ", {var2}")?;
                }
                let Fold { range, accu, init, condition, step, result, .. } = &**fold;
                write!(f, " in {range}; {accu} = {init}; {condition}; {accu} = {step}; {result})")
            }
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Null => f.write_str("null"),
            Literal::Bool(flag) => flag.fmt(f),
            Literal::Int(n) => n.fmt(f),
            Literal::Uint(n) => write!(f, "{n}u"),
            Literal::Double(n) => write!(f, "{n:?}"),
            Literal::String(text) => write!(f, "{text:?}"),
            Literal::Bytes(bytes) => write!(f, "b\"{}\"", bytes.escape_ascii()),
        }
    }
}
