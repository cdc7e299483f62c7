//! Decides: what the condition of `.if` and `.elif` comes to, as HAProxy evaluates it (its manual,
//! 2.4 "Conditional blocks"; its source, cfgcond.c).

use super::environment::{Environment, Value, is_known};
use crate::haproxy::version::Build;

/// HAProxy goes deeper, but no person does.
const DEEPEST: usize = 64;

/// What a condition comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    /// It cannot be decided here, or HAProxy refuses it.
    Open,
}

impl Truth {
    pub(super) fn not(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Open => Self::Open,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, Self::True) => Self::True,
            _ => Self::Open,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

pub(super) fn evaluate(text: &str, environment: &Environment, build: &Build) -> Truth {
    if text.is_empty() {
        return Truth::False;
    }
    let mut expression = Expression { left: text, environment, build };
    let value = expression.either(0);
    expression.skip_blanks();
    value.filter(|_| expression.left.is_empty()).unwrap_or(Truth::Open)
}

/// What is left to read of it. Each answer is `None` where HAProxy refuses it.
struct Expression<'a> {
    left: &'a str,
    environment: &'a Environment,
    build: &'a Build,
}

impl Expression<'_> {
    fn skip_blanks(&mut self) {
        self.left = self.left.trim_start_matches([' ', '\t']);
    }

    fn next_is(&mut self, operator: &str) -> bool {
        self.skip_blanks();
        let rest = self.left.strip_prefix(operator);
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }

    fn either(&mut self, depth: usize) -> Option<Truth> {
        let mut value = self.both(depth)?;
        while self.next_is("||") {
            value = value.or(self.both(depth)?);
        }
        Some(value)
    }

    fn both(&mut self, depth: usize) -> Option<Truth> {
        let mut value = self.term(depth)?;
        while self.next_is("&&") {
            value = value.and(self.term(depth)?);
        }
        Some(value)
    }

    fn term(&mut self, depth: usize) -> Option<Truth> {
        let mut negated = false;
        while self.next_is("!") {
            negated = !negated;
        }
        let value = if let Some(number) = self.number() {
            number.into()
        } else if self.next_is("(") {
            let inner = self.either(Some(depth + 1).filter(|depth| *depth < DEEPEST)?)?;
            self.next_is(")").then_some(inner)?
        } else {
            self.predicate()?
        };
        Some(if negated { value.not() } else { value })
    }

    /// As `strtol` reads it; whether it is another than zero.
    fn number(&mut self) -> Option<bool> {
        let text = self.left.strip_prefix(['+', '-']).unwrap_or(self.left);
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let (digits, radix) = match hexadecimal {
            Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => (digits, 16),
            _ if text.starts_with('0') => (text, 8),
            _ => (text, 10),
        };
        let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        if end == 0 {
            return None;
        }
        self.left = &digits[end..];
        Some(digits[..end].contains(|c: char| c != '0'))
    }

    fn predicate(&mut self) -> Option<Truth> {
        let end = self.left.find([' ', '(']).unwrap_or(self.left.len());
        let (name, rest) = self.left.split_at(end);
        self.left = rest;
        let wanted = if ["streq", "strneq", "strstr"].contains(&name) { 2 } else { 1 };
        let arguments = self.arguments(wanted)?;
        if !arguments.iter().all(|argument| is_known(argument)) {
            return Some(Truth::Open);
        }
        Some(match (name, arguments.as_slice()) {
            ("streq", [first, second]) => (first == second).into(),
            ("strneq", [first, second]) => (first != second).into(),
            ("strstr", [first, second]) => first.contains(second.as_str()).into(),
            (_, [only]) => self.of_one(name, only),
            _ => return None,
        })
    }

    fn of_one(&self, name: &str, argument: &str) -> Truth {
        let build = self.build;
        let value = match name {
            "defined" => match self.environment.value(argument) {
                Value::Unset => Some(false),
                Value::Is(_) | Value::Something => Some(true),
                Value::Perhaps => None,
            },
            "feature" => Some(build.has(argument)),
            "version_atleast" => Some(build.version.is_at_least(argument)),
            "version_before" => Some(!build.version.is_at_least(argument)),
            "openssl_version_atleast" => build.openssl_is_at_least(argument),
            "openssl_version_before" => build.openssl_is_at_least(argument).map(|yes| !yes),
            "ssllib_name_startswith" => build.tls_library_starts_with(argument),
            // `enabled` depends on lines and arguments all over.
            _ => None,
        };
        value.map_or(Truth::Open, Truth::from)
    }

    /// Exactly so many, with quotes and backslashes of their own; a single one may be left out.
    fn arguments(&mut self, wanted: usize) -> Option<Vec<String>> {
        let Some(mut rest) = self.left.strip_prefix('(') else {
            return (wanted == 1).then(|| vec![String::new()]);
        };
        let mut arguments = vec![String::new()];
        let mut quote = None;
        loop {
            let next = rest.chars().next()?;
            rest = &rest[next.len_utf8()..];
            let count = arguments.len();
            let argument = arguments.last_mut()?;
            match (next, quote) {
                ('"' | '\'', None) => quote = Some(next),
                (end, Some(begin)) if end == begin => quote = None,
                ('\\', None | Some('"')) => {
                    let escaped = escaped(rest.chars().next()?);
                    argument.push(escaped.unwrap_or('\\'));
                    rest = &rest[usize::from(escaped.is_some())..];
                }
                (',', None) if count < wanted => arguments.push(String::new()),
                (',', None) => return None,
                (')', None) => break,
                (other, _) => argument.push(other),
            }
        }
        self.left = rest;
        (arguments.len() == wanted).then_some(arguments)
    }
}

/// After a backslash, if it means anything there.
fn escaped(letter: char) -> Option<char> {
    match letter {
        'r' => Some('\r'),
        'n' => Some('\n'),
        't' => Some('\t'),
        '\\' | ' ' | '"' | '\'' => Some(letter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::line;
    use super::Truth::{False, Open, True};
    use super::*;
    use crate::haproxy::installed::find;

    /// Each with what it comes to, where HAProxy takes it at all.
    const TABLE: [(&str, Truth); 61] = [
        ("", False),
        ("0", False),
        ("1", True),
        ("-1", True),
        ("00", False),
        ("0x0", False),
        ("0x10", True),
        ("017", True),
        ("08", Open),
        ("1a", Open),
        ("!1", False),
        ("! ! 1", True),
        ("!", Open),
        ("1 && 0", False),
        ("1&&1", True),
        ("0 || 1", True),
        ("0 || 0", False),
        ("1 || 0 && 0", True),
        ("0 && 0 || 1", True),
        ("0 && (0 || 1)", False),
        ("!(0 || 1)", False),
        ("((1))", True),
        ("(1", Open),
        ("1)", Open),
        ("1 1", Open),
        ("1 &&", Open),
        ("&& 1", Open),
        ("1 & 1", Open),
        ("nonsense", Open),
        ("nonsense(1)", Open),
        ("defined(A)", True),
        ("defined(EMPTY)", True),
        ("defined(NO_SUCH)", False),
        ("!defined(NO_SUCH)", True),
        ("defined()", False),
        ("defined", False),
        ("defined(A,B)", Open),
        ("defined (A)", Open),
        ("defined(A", Open),
        ("defined( A)", False),
        ("streq(a,a)", True),
        ("streq(a,b)", False),
        ("streq(a, a)", False),
        ("streq(,)", True),
        ("streq(a)", Open),
        ("strneq(a,b)", True),
        ("streq(\"a,b\",'a,b')", Open),
        ("streq('\"a,b\"',\"'a,b'\")", True),
        ("streq(\"$A\",1)", True),
        ("streq($A,1)", False),
        ("streq(a\\ b,'a b')", True),
        ("streq(\\\\,'\\')", True),
        ("version_atleast(2.4)", True),
        ("version_atleast(99)", False),
        ("version_before(2.4.1-dev5)", False),
        ("version_before(x)", False),
        ("feature(OPENSSL)", True),
        ("feature(NO_SUCH)", False),
        ("feature(51DEGREES) || !feature(51DEGREES)", True),
        ("openssl_version_atleast(1.1.1)", True),
        ("openssl_version_before(4.0.0)", True),
    ];

    fn build() -> Build {
        find(&std::env::var_os("PATH").unwrap()).unwrap().build
    }

    fn environment(build: &Build) -> Environment {
        Environment::new([("A", "1"), ("EMPTY", "")], &build.version, "me")
    }

    #[test]
    fn conditions_come_to_what_the_real_haproxy_says() {
        let build = build();
        let environment = environment(&build);
        for (text, expected) in TABLE {
            let words = line::read(text, &environment).unwrap().words.join(" ");
            assert_eq!(evaluate(&words, &environment, &build), expected, "ours of {text:?}");
            let mut command = Command::new("haproxy");
            command.env_clear().envs([("A", "1"), ("EMPTY", "")]).env("PATH", "/bin:/usr/bin");
            let path = std::env::var_os("PATH").unwrap();
            let output = command.env("PATH", path).args(["-cc", text]).output().unwrap();
            let theirs = match output.status.code() {
                Some(0) => True,
                Some(1) if output.stderr.is_empty() => False,
                _ => Open,
            };
            assert_eq!(theirs, expected, "HAProxy's of {text:?}: {output:?}");
        }
    }

    #[test]
    fn what_is_not_known_decides_only_what_depends_on_it() {
        let build = build();
        let environment = environment(&build);
        for (text, expected) in [
            ("enabled(SPLICE)", Open),
            ("streq(\0,a)", Open),
            ("streq(\0,a) && 0", False),
            ("0 && streq(\0,a)", False),
            ("streq(\0,a) || 1", True),
            ("streq(\0,a) || 0", Open),
            ("!streq(\0,a)", Open),
            ("\0", Open),
        ] {
            assert_eq!(evaluate(text, &environment, &build), expected, "{text:?}");
        }
    }

    #[test]
    fn any_text_is_answered() {
        let build = build();
        let environment = environment(&build);
        let parts =
            ["(", ")", "!", "&&", "||", " ", "1", "0x", "defined(", "streq(a,", "\\", "\"", "é"];
        for seed in 0..20_000_usize {
            let mut left = seed * 7919;
            let mut text = String::new();
            while left > 0 {
                text += parts[left % parts.len()];
                left /= parts.len();
            }
            let _ = evaluate(&text, &environment, &build);
        }
        assert_eq!(evaluate(&"(".repeat(100_000), &environment, &build), Open);
        assert_eq!(evaluate(&"!".repeat(100_001), &environment, &build), Open);
    }
}
