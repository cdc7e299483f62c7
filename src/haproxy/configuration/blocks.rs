//! Decides: which lines between `.if` and `.endif` HAProxy reads.

use super::Certainty;
use super::condition::Truth;

/// Of one `.if`, from the outermost to the innermost.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Whether the `.if` itself is read.
    outside: Truth,
    /// Whether one of its branches was read so far.
    taken: Truth,
    /// Whether the branch at hand is read.
    here: Truth,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Blocks(Vec<Block>);

impl Blocks {
    /// Of the lines that follow; `None` where HAProxy does not read them.
    pub(super) fn certainty(&self) -> Option<Certainty> {
        match self.here() {
            Truth::True => Some(Certainty::Certain),
            Truth::Open => Some(Certainty::Possible),
            Truth::False => None,
        }
    }

    fn here(&self) -> Truth {
        self.0.last().map_or(Truth::True, |block| block.here)
    }

    /// Whether this line is about blocks. The condition is evaluated only where HAProxy does.
    pub(super) fn line(&mut self, keyword: &str, condition: impl FnOnce() -> Truth) -> bool {
        match keyword {
            ".if" => {
                let outside = self.here();
                let taken = if outside == Truth::False { Truth::False } else { condition() };
                self.0.push(Block { outside, taken, here: outside.and(taken) });
            }
            ".elif" => self.branch(condition),
            ".else" => self.branch(|| Truth::True),
            ".endif" => drop(self.0.pop()),
            _ => return false,
        }
        true
    }

    fn branch(&mut self, condition: impl FnOnce() -> Truth) {
        let Some(block) = self.0.last_mut() else { return };
        let open = block.outside.and(block.taken.not());
        let holds = if open == Truth::False { Truth::False } else { condition() };
        block.here = open.and(holds);
        block.taken = block.taken.or(holds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1`, `0`, `?` for `.if` with that value; `e1`… for `.elif`, `|` for `.else`, `.` for `.endif`.
    fn after(steps: &str) -> char {
        let mut blocks = Blocks::default();
        for step in steps.split_whitespace() {
            let value = match step.chars().last() {
                Some('1') => Truth::True,
                Some('0') => Truth::False,
                _ => Truth::Open,
            };
            let keyword = match step {
                "|" => ".else",
                "." => ".endif",
                step if step.starts_with('e') => ".elif",
                _ => ".if",
            };
            assert!(blocks.line(keyword, || value));
        }
        match blocks.certainty() {
            Some(Certainty::Certain) => '1',
            Some(Certainty::Possible) => '?',
            None => '0',
        }
    }

    #[test]
    fn one_branch_is_read_and_what_is_not_decided_may_be() {
        for (steps, expected) in [
            ("", '1'),
            ("1", '1'),
            ("0", '0'),
            ("?", '?'),
            ("1 |", '0'),
            ("0 |", '1'),
            ("? |", '?'),
            ("0 e1", '1'),
            ("1 e1", '0'),
            ("0 e0", '0'),
            ("0 e1 |", '0'),
            ("0 e0 |", '1'),
            ("? e1", '?'),
            ("? e1 |", '0'),
            ("? e0 |", '?'),
            ("0 e? e1", '?'),
            ("0 1", '0'),
            ("0 1 |", '0'),
            ("0 0 |", '0'),
            ("1 0 |", '1'),
            ("? 1", '?'),
            ("? 0", '0'),
            ("? 0 |", '?'),
            ("0 .", '1'),
            ("0 1 . |", '1'),
            (". | e1", '1'),
        ] {
            assert_eq!(after(steps), expected, "{steps}");
        }
    }
}
