//! Tokens into expressions, by CEL's grammar.

use crate::ast::{Call, Entry, Expr, ExprKind, Initializer, Item, Literal, Select, Struct, op};
use crate::lexer::{Kind, Token, tokens};
use crate::macros;
use crate::source::Issue;

/// How deep expressions may be nested.
const MAX_DEPTH: usize = 250;
/// How high an expression may become with its macros expanded. What recurses over expressions has this bound.
const MAX_HEIGHT: u32 = 320;
/// How many expressions one program may have; macros copy their targets.
const MAX_EXPRESSIONS: u32 = 300_000;
/// How long a text may be, in characters.
const MAX_CHARACTERS: usize = 100_000;
const ADDITIVE: u8 = 2;
const MULTIPLICATIVE: u8 = 3;

/// Words that no variable can have as its name.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// What a value can begin with, as ANTLR lists it.
const STARTS: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// The expression that `source` is, and how many numbers its expressions have.
pub(crate) fn parse(source: &str) -> Result<(Expr, u32), Vec<Issue>> {
    let characters = source.chars().count();
    if characters > MAX_CHARACTERS {
        let message = format!("expression code point size exceeds limit: size: {characters}, limit {MAX_CHARACTERS}");
        return Err(vec![Issue::new(0, message)]);
    }
    let mut issues = Vec::new();
    let tokens = tokens(source, &mut issues);
    let mut parser = Parser { tokens, next: 0, depth: 0, ids: 0, issues };
    let parsed = parser.whole();
    match parsed {
        Some(expr) if parser.issues.is_empty() => Ok((expr, parser.ids)),
        _ => Err(parser.issues),
    }
}

pub(crate) struct Parser<'s> {
    tokens: Vec<Token<'s>>,
    next: usize,
    depth: usize,
    ids: u32,
    issues: Vec<Issue>,
}

/// None where the text is no CEL; what is wrong has been told.
type Parsed = Option<Expr>;

impl<'s> Parser<'s> {
    pub fn issue(&mut self, at: u32, message: impl Into<String>) {
        self.issues.push(Issue::new(at, message));
    }

    /// An expression with the next number.
    pub fn make(&mut self, at: u32, kind: ExprKind) -> Expr {
        self.ids += 1;
        let mut expr = Expr { id: self.ids - 1, at, height: 1, kind };
        let mut below = 0;
        expr.each_child(&mut |child| below = below.max(child.height));
        expr.height = below + 1;
        if expr.height > MAX_HEIGHT {
            self.too_deep(at);
            // What is too high is dropped, so that nothing recurses over it.
            expr = Expr { id: expr.id, at, height: 1, kind: ExprKind::Literal(Literal::Null) };
        }
        expr
    }

    fn too_deep(&mut self, at: u32) {
        let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
        if self.issues.iter().all(|issue| issue.message != message) {
            self.issue(at, message);
        }
    }

    pub fn call(&mut self, at: u32, function: &str, args: Vec<Expr>) -> Expr {
        self.make(at, ExprKind::Call(Box::new(Call { function: function.into(), target: None, args })))
    }

    pub fn literal(&mut self, at: u32, literal: Literal) -> Expr {
        self.make(at, ExprKind::Literal(literal))
    }

    /// A copy with numbers of its own; none if the program would grow too large.
    pub fn copy(&mut self, expr: &Expr) -> Option<Expr> {
        fn count(expr: &Expr) -> u32 {
            let mut sum = 1u32;
            expr.each_child(&mut |child| sum = sum.saturating_add(count(child)));
            sum
        }
        fn renumber(expr: &mut Expr, ids: &mut u32) {
            expr.id = *ids;
            *ids += 1;
            expr.each_child_mut(&mut |child| renumber(child, ids));
        }
        if self.ids.saturating_add(count(expr)) > MAX_EXPRESSIONS {
            self.too_deep(expr.at);
            return None;
        }
        let mut copy = expr.clone();
        renumber(&mut copy, &mut self.ids);
        Some(copy)
    }

    fn peek(&self) -> Token<'s> {
        self.tokens[self.next]
    }

    fn ahead(&self, by: usize) -> Token<'s> {
        self.tokens[(self.next + by).min(self.tokens.len() - 1)]
    }

    fn bump(&mut self) -> Token<'s> {
        let token = self.peek();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn accept(&mut self, mark: &str) -> Option<Token<'s>> {
        self.peek().is(mark).then(|| self.bump())
    }

    fn expect(&mut self, mark: &str, expecting: &str) -> Option<Token<'s>> {
        let found = self.accept(mark);
        if found.is_none() {
            self.mismatch(expecting);
        }
        found
    }

    fn mismatch(&mut self, expecting: &str) {
        let token = self.peek();
        let message = format!("Syntax error: mismatched input '{}' expecting {expecting}", shown(token));
        self.issue(token.at, message);
    }

    fn whole(&mut self) -> Parsed {
        let expr = self.expr()?;
        let token = self.peek();
        if token.kind == Kind::End {
            return Some(expr);
        }
        let how = if self.ahead(1).kind == Kind::End { "extraneous" } else { "mismatched" };
        let message = format!("Syntax error: {how} input '{}' expecting <EOF>", shown(token));
        self.issue(token.at, message);
        None
    }

    fn expr(&mut self) -> Parsed {
        if self.depth >= MAX_DEPTH {
            let at = self.peek().at;
            self.too_deep(at);
            return None;
        }
        self.depth += 1;
        let parsed = self.conditional();
        self.depth -= 1;
        parsed
    }

    fn conditional(&mut self) -> Parsed {
        let condition = self.or()?;
        let Some(mark) = self.accept("?") else { return Some(condition) };
        let yes = self.or()?;
        self.expect(":", "':'")?;
        let no = self.expr()?;
        Some(self.call(mark.at, op::CONDITIONAL, vec![condition, yes, no]))
    }

    fn or(&mut self) -> Parsed {
        self.chain("||", op::OR, Self::and)
    }

    fn and(&mut self) -> Parsed {
        self.chain("&&", op::AND, |parser| parser.binary(0))
    }

    /// Terms with an associative operator between them, as a balanced tree.
    fn chain(&mut self, mark: &str, function: &str, term: fn(&mut Self) -> Parsed) -> Parsed {
        let mut terms = vec![Some(term(self)?)];
        let mut places = Vec::new();
        while let Some(token) = self.accept(mark) {
            places.push(token.at);
            terms.push(Some(term(self)?));
        }
        if places.is_empty() { terms.pop()? } else { self.balance(function, &mut terms, &places, 0, places.len() - 1) }
    }

    fn balance(&mut self, function: &str, terms: &mut [Parsed], places: &[u32], low: usize, high: usize) -> Parsed {
        let middle = (low + high).div_ceil(2);
        let left =
            if middle == low { terms[middle].take()? } else { self.balance(function, terms, places, low, middle - 1)? };
        let right = if middle == high {
            terms[middle + 1].take()?
        } else {
            self.balance(function, terms, places, middle + 1, high)?
        };
        Some(self.call(places[middle], function, vec![left, right]))
    }

    /// Relations, sums and products, of operators that bind at least as tightly as `least`.
    fn binary(&mut self, least: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let token = self.peek();
            let Some((binds, function)) = operator(token).filter(|(binds, _)| *binds >= least) else {
                return Some(left);
            };
            self.bump();
            let right = self.binary(binds + 1)?;
            left = self.call(token.at, function, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed {
        let token = self.peek();
        let (mark, function) = match token {
            _ if token.is("!") => ("!", op::NOT),
            _ if token.is("-") && !matches!(self.ahead(1).kind, Kind::Int | Kind::Float) => ("-", op::NEGATE),
            _ => return self.member(),
        };
        let mut count = 0;
        while self.peek().is(mark) {
            self.bump();
            count += 1;
        }
        let operand = self.member()?;
        Some(if count % 2 == 0 { operand } else { self.call(token.at, function, vec![operand]) })
    }

    fn member(&mut self) -> Parsed {
        let mut value = self.primary()?;
        loop {
            if let Some(dot) = self.accept(".") {
                value = self.selection(value, dot.at)?;
            } else if let Some(bracket) = self.accept("[") {
                let optional = self.accept("?").is_some();
                let index = self.expr()?;
                self.expect("]", "']'")?;
                let function = if optional { op::OPT_INDEX } else { op::INDEX };
                value = self.call(bracket.at, function, vec![value, index]);
            } else {
                return Some(value);
            }
        }
    }

    fn selection(&mut self, operand: Expr, at: u32) -> Parsed {
        let optional = self.accept("?").is_some();
        let token = self.peek();
        if token.kind == Kind::Escaped {
            self.issue(token.at, "unsupported syntax: '`'");
            return None;
        }
        if token.kind != Kind::Ident {
            let message = match token.kind {
                Kind::String | Kind::Bytes => {
                    format!("Syntax error: no viable alternative at input '.{}'", shown(token))
                }
                _ => format!(
                    "Syntax error: mismatched input '{}' expecting {{IDENTIFIER, ESC_IDENTIFIER}}",
                    shown(token)
                ),
            };
            self.issue(token.at, message);
            return None;
        }
        self.bump();
        if optional {
            let field = self.literal(token.at, Literal::String(token.text.into()));
            return Some(self.call(at, op::OPT_SELECT, vec![operand, field]));
        }
        let Some(open) = self.accept("(") else {
            let select = Select { operand, field: token.text.into(), test: false };
            return Some(self.make(at, ExprKind::Select(Box::new(select))));
        };
        let args = self.arguments()?;
        self.invoke(open.at, token.text, Some(operand), args)
    }

    fn invoke(&mut self, at: u32, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Parsed {
        match macros::expand(self, at, function, target, args) {
            Ok(expanded) => expanded,
            Err((target, args)) => {
                let call = Call { function: function.into(), target, args };
                Some(self.make(at, ExprKind::Call(Box::new(call))))
            }
        }
    }

    /// What stands between parentheses that have been opened.
    fn arguments(&mut self) -> Option<Vec<Expr>> {
        let mut args = Vec::new();
        if self.accept(")").is_some() {
            return Some(args);
        }
        loop {
            args.push(self.expr()?);
            if self.accept(",").is_none() {
                self.expect(")", "{')', ','}")?;
                return Some(args);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let token = self.peek();
        match token.kind {
            Kind::Ident => self.named(""),
            Kind::True | Kind::False => {
                self.bump();
                Some(self.literal(token.at, Literal::Bool(token.kind == Kind::True)))
            }
            Kind::Null => {
                self.bump();
                Some(self.literal(token.at, Literal::Null))
            }
            Kind::Int | Kind::Uint | Kind::Float => self.number("", token.at),
            Kind::String | Kind::Bytes => {
                self.bump();
                match crate::lexer::unquote(token.text) {
                    Ok(literal) => Some(self.literal(token.at, literal)),
                    Err(why) => {
                        self.issue(token.at, why);
                        Some(self.literal(token.at, Literal::Null))
                    }
                }
            }
            Kind::Mark => self.marked(token),
            Kind::End | Kind::In | Kind::Escaped => {
                self.mismatch(STARTS);
                None
            }
        }
    }

    fn marked(&mut self, token: Token<'s>) -> Parsed {
        match token.text {
            "(" => {
                self.bump();
                let inner = self.expr()?;
                self.expect(")", "')'")?;
                Some(inner)
            }
            "[" => {
                self.bump();
                self.list(token.at)
            }
            "{" => {
                self.bump();
                self.map(token.at)
            }
            "-" => {
                self.bump();
                self.number("-", token.at)
            }
            "." => {
                self.bump();
                if self.peek().kind == Kind::Ident {
                    return self.named(".");
                }
                let next = self.peek();
                let message = format!("Syntax error: no viable alternative at input '.{}'", shown(next));
                self.issue(next.at, message);
                None
            }
            _ => {
                let starts =
                    |token: Token<'_>| !matches!(token.kind, Kind::Mark | Kind::End | Kind::In | Kind::Escaped);
                if starts(self.ahead(1)) {
                    let message = format!("Syntax error: extraneous input '{}' expecting {STARTS}", token.text);
                    self.issue(token.at, message);
                } else {
                    self.mismatch(STARTS);
                }
                None
            }
        }
    }

    fn number(&mut self, sign: &str, at: u32) -> Parsed {
        let token = self.bump();
        let text = format!("{sign}{}", token.text);
        let literal = match token.kind {
            Kind::Float => text.parse().ok().map(Literal::Double).ok_or("invalid double literal"),
            Kind::Uint => {
                let digits = text.trim_end_matches(['u', 'U']);
                let value = match digits.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => digits.parse(),
                };
                value.ok().map(Literal::Uint).ok_or("invalid uint literal")
            }
            _ => {
                let value = match token.text.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
                    None => text.parse(),
                };
                value.ok().map(Literal::Int).ok_or("invalid int literal")
            }
        };
        match literal {
            Ok(literal) => Some(self.literal(at, literal)),
            Err(why) => {
                self.issue(at, why);
                Some(self.literal(at, Literal::Null))
            }
        }
    }

    /// A variable, a function's call, or an object's making; `dot` leads it.
    fn named(&mut self, dot: &str) -> Parsed {
        let mut length = 1;
        while self.ahead(length).is(".") && self.ahead(length + 1).kind == Kind::Ident {
            length += 2;
        }
        if self.ahead(length).is("{") {
            let mut name = dot.to_owned();
            for _ in 0..length {
                name.push_str(self.bump().text);
            }
            let open = self.bump();
            return self.object(open.at, &name);
        }
        let token = self.bump();
        let name = format!("{dot}{}", token.text);
        if let Some(open) = self.accept("(") {
            let args = self.arguments()?;
            if RESERVED.contains(&token.text) {
                self.issue(token.at, format!("reserved identifier: {}", token.text));
            }
            return self.invoke(open.at, &name, None, args);
        }
        if RESERVED.contains(&token.text) {
            self.issue(token.at, format!("reserved identifier: {}", token.text));
        }
        Some(self.make(token.at, ExprKind::Ident(name.into())))
    }

    /// Whether a collection goes on, between its items and after its last comma.
    fn goes_on(&mut self, close: &str, first: bool) -> Option<bool> {
        if self.accept(close).is_some() {
            return Some(false);
        }
        if first && !(self.peek().is(",") && self.ahead(1).is(close)) {
            return Some(true);
        }
        self.expect(",", &format!("{{'{close}', ','}}"))?;
        Some(self.accept(close).is_none())
    }

    fn list(&mut self, at: u32) -> Parsed {
        let mut items = Vec::new();
        while self.goes_on("]", items.is_empty())? {
            let optional = self.accept("?").is_some();
            items.push(Item { value: self.expr()?, optional });
        }
        Some(self.make(at, ExprKind::List(items)))
    }

    fn map(&mut self, at: u32) -> Parsed {
        let mut entries = Vec::new();
        while self.goes_on("}", entries.is_empty())? {
            let optional = self.accept("?").is_some();
            let key = self.expr()?;
            self.expect(":", "':'")?;
            entries.push(Entry { key, value: self.expr()?, optional });
        }
        Some(self.make(at, ExprKind::Map(entries)))
    }

    fn object(&mut self, at: u32, name: &str) -> Parsed {
        let mut fields: Vec<Initializer> = Vec::new();
        while self.goes_on("}", fields.is_empty())? {
            let optional = self.accept("?").is_some();
            let field = self.peek();
            if field.kind != Kind::Ident {
                self.mismatch("{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}");
                return None;
            }
            self.bump();
            let colon = self.expect(":", "':'")?;
            fields.push(Initializer { at: colon.at, name: field.text.into(), value: self.expr()?, optional });
        }
        Some(self.make(at, ExprKind::Struct(Box::new(Struct { name: name.into(), fields }))))
    }
}

fn shown<'s>(token: Token<'s>) -> &'s str {
    if token.kind == Kind::End { "<EOF>" } else { token.text }
}

/// How tightly an operator binds, and its function.
fn operator(token: Token<'_>) -> Option<(u8, &'static str)> {
    if token.kind == Kind::In {
        return Some((1, op::IN));
    }
    if token.kind != Kind::Mark {
        return None;
    }
    Some(match token.text {
        "==" => (1, op::EQUALS),
        "!=" => (1, "_!=_"),
        "<" => (1, "_<_"),
        "<=" => (1, "_<=_"),
        ">" => (1, "_>_"),
        ">=" => (1, "_>=_"),
        "+" => (ADDITIVE, op::ADD),
        "-" => (ADDITIVE, "_-_"),
        "*" => (MULTIPLICATIVE, "_*_"),
        "/" => (MULTIPLICATIVE, "_/_"),
        "%" => (MULTIPLICATIVE, "_%_"),
        _ => return None,
    })
}
