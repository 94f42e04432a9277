//! Macros: calls that are written out as other expressions when they are parsed.

use crate::ast::{ACCUMULATOR, Expr, ExprKind, Fold, Item, Literal, Select, op};
use crate::parser::Parser;

/// The call given back, if it is no macro's.
type NoMacro = (Option<Expr>, Vec<Expr>);

/// What a call of a macro stands for; a fault in its use is told, and nothing comes out.
pub(crate) fn expand(
    parser: &mut Parser<'_>,
    at: u32,
    function: &str,
    target: Option<Expr>,
    args: Vec<Expr>,
) -> Result<Option<Expr>, NoMacro> {
    let mut maker = Maker { parser, at };
    let Some(target) = target else {
        return if function == "has" && args.len() == 1 { Ok(maker.has(args)) } else { Err((None, args)) };
    };
    let known = matches!(
        (function, args.len()),
        ("all" | "exists" | "exists_one" | "existsOne" | "map", 2 | 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4)
            | ("filter" | "optMap" | "optFlatMap", 2)
    );
    if !known {
        return Err((Some(target), args));
    }
    Ok(match (function, args.len()) {
        ("all" | "exists" | "exists_one" | "existsOne", _) => maker.quantifier(function, target, args),
        ("map" | "filter", _) => maker.map(function, target, args),
        ("optMap" | "optFlatMap", _) => maker.opt_map(function, target, args),
        _ => maker.transform(function, target, args),
    })
}

/// Variables of a comprehension.
struct Vars {
    var: Box<str>,
    var2: Option<Box<str>>,
}

struct Maker<'p, 's> {
    parser: &'p mut Parser<'s>,
    at: u32,
}

impl Maker<'_, '_> {
    fn has(&mut self, mut args: Vec<Expr>) -> Option<Expr> {
        let arg = args.pop()?;
        let ExprKind::Select(select) = arg.kind else {
            self.parser.issue(arg.at, "invalid argument to has() macro");
            return None;
        };
        Some(self.parser.make(self.at, ExprKind::Select(Box::new(Select { test: true, ..*select }))))
    }

    fn accu(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }

    fn ident(&mut self, name: &str) -> Expr {
        self.parser.make(self.at, ExprKind::Ident(name.into()))
    }

    fn literal(&mut self, literal: Literal) -> Expr {
        self.parser.literal(self.at, literal)
    }

    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.parser.call(self.at, function, args)
    }

    fn list(&mut self, items: Vec<Expr>) -> Expr {
        let items = items.into_iter().map(|value| Item { value, optional: false }).collect();
        self.parser.make(self.at, ExprKind::List(items))
    }

    fn fold(&mut self, range: Expr, vars: Vars, [init, condition, step, result]: [Expr; 4]) -> Option<Expr> {
        let accu = ACCUMULATOR.into();
        let fold = Fold { range, var: vars.var, var2: vars.var2, accu, init, condition, step, result };
        Some(self.parser.make(self.at, ExprKind::Fold(Box::new(fold))))
    }

    /// The name that `arg` is; else `fault` is told.
    fn simple(&mut self, arg: &Expr, fault: &str) -> Option<Box<str>> {
        match &arg.kind {
            ExprKind::Ident(name) if &**name == "__result__" => {
                self.parser.issue(arg.at, "iteration variable overwrites accumulator variable");
                None
            }
            ExprKind::Ident(name) if !name.starts_with('.') => Some(name.clone()),
            _ => {
                self.parser.issue(arg.at, fault);
                None
            }
        }
    }

    fn pair(&mut self, args: &[Expr]) -> Option<Vars> {
        let fault = "argument must be a simple name";
        let var = self.simple(&args[0], fault)?;
        let var2 = self.simple(&args[1], fault)?;
        if var == var2 {
            self.parser.issue(args[1].at, format!("duplicate variable name: {var}"));
            return None;
        }
        Some(Vars { var, var2: Some(var2) })
    }

    fn quantifier(&mut self, function: &str, range: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let predicate = args.pop()?;
        let vars = match args.as_slice() {
            [one] => Vars { var: self.simple(one, "argument must be a simple name")?, var2: None },
            both => self.pair(both)?,
        };
        let parts = match function {
            "all" => {
                let (init, accu) = (self.literal(Literal::Bool(true)), self.accu());
                let condition = self.call(op::NOT_STRICTLY_FALSE, vec![accu]);
                let accu = self.accu();
                let step = self.call(op::AND, vec![accu, predicate]);
                [init, condition, step, self.accu()]
            }
            "exists" => {
                let (init, accu) = (self.literal(Literal::Bool(false)), self.accu());
                let not = self.call(op::NOT, vec![accu]);
                let condition = self.call(op::NOT_STRICTLY_FALSE, vec![not]);
                let accu = self.accu();
                let step = self.call(op::OR, vec![accu, predicate]);
                [init, condition, step, self.accu()]
            }
            _ => {
                let (init, condition) = (self.literal(Literal::Int(0)), self.literal(Literal::Bool(true)));
                let (accu, one) = (self.accu(), self.literal(Literal::Int(1)));
                let more = self.call(op::ADD, vec![accu, one]);
                let same = self.accu();
                let step = self.call(op::CONDITIONAL, vec![predicate, more, same]);
                let (accu, one) = (self.accu(), self.literal(Literal::Int(1)));
                [init, condition, step, self.call(op::EQUALS, vec![accu, one])]
            }
        };
        self.fold(range, vars, parts)
    }

    /// `accu = filter ? change : accu` from an empty collection.
    fn collect(&mut self, range: Expr, vars: Vars, init: Expr, filter: Option<Expr>, change: Expr) -> Option<Expr> {
        let condition = self.literal(Literal::Bool(true));
        let step = match filter {
            None => change,
            Some(filter) => {
                let same = self.accu();
                self.call(op::CONDITIONAL, vec![filter, change, same])
            }
        };
        let result = self.accu();
        self.fold(range, vars, [init, condition, step, result])
    }

    fn append(&mut self, item: Expr) -> Expr {
        let (accu, list) = (self.accu(), self.list(vec![item]));
        self.call(op::ADD, vec![accu, list])
    }

    fn map(&mut self, function: &str, range: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let vars = Vars { var: self.simple(&args[0], "argument is not an identifier")?, var2: None };
        let last = args.pop()?;
        let (filter, item) = match function {
            "filter" => (Some(last), self.parser.copy(&args[0])?),
            _ => (if args.len() == 2 { args.pop() } else { None }, last),
        };
        let init = self.list(Vec::new());
        let change = self.append(item);
        self.collect(range, vars, init, filter, change)
    }

    fn transform(&mut self, function: &str, range: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let vars = self.pair(&args)?;
        let value = args.pop()?;
        let filter = if args.len() == 3 { args.pop() } else { None };
        if function == "transformList" {
            let init = self.list(Vec::new());
            let change = self.append(value);
            return self.collect(range, vars, init, filter, change);
        }
        let init = self.parser.make(self.at, ExprKind::Map(Vec::new()));
        let mut inserted = vec![self.accu()];
        if function == "transformMap" {
            inserted.push(self.ident(&vars.var));
        }
        inserted.push(value);
        let change = self.call(op::MAP_INSERT, inserted);
        self.collect(range, vars, init, filter, change)
    }

    fn member(&mut self, target: Expr, function: &str) -> Expr {
        let call = crate::ast::Call { function: function.into(), target: Some(target), args: Vec::new() };
        self.parser.make(self.at, ExprKind::Call(Box::new(call)))
    }

    fn opt_map(&mut self, function: &str, target: Expr, mut args: Vec<Expr>) -> Option<Expr> {
        let body = args.pop()?;
        let fault = format!("{function}() variable name must be a simple identifier");
        let name = self.simple(&args[0], &fault)?;
        let copy = self.parser.copy(&target)?;
        let has = self.member(target, "hasValue");
        let init = self.member(copy, "value");
        let (range, condition) = (self.list(Vec::new()), self.literal(Literal::Bool(false)));
        let step = self.ident(&name);
        let fold = Fold { range, var: "#unused".into(), var2: None, accu: name, init, condition, step, result: body };
        let bound = self.parser.make(self.at, ExprKind::Fold(Box::new(fold)));
        let yes = if function == "optMap" { self.call("optional.of", vec![bound]) } else { bound };
        let no = self.call("optional.none", Vec::new());
        Some(self.call(op::CONDITIONAL, vec![has, yes, no]))
    }
}
