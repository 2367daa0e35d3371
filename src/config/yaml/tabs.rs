//! Tabs between tokens: YAML 1.2 allows some of them, PyYAML none. (CFG-021)

use super::Fault;

/// Refuses the first tab that is neither in a comment nor in `inside`: the character ranges of the
/// quoted and block scalars, in order.
pub(super) fn refuse(text: &str, inside: &[(usize, usize)]) -> Result<(), Fault> {
    let mut scalars = inside.iter().peekable();
    let (mut line, mut comment, mut before) = (1, false, '\n');
    for (index, c) in text.chars().enumerate() {
        while scalars.peek().is_some_and(|(_, end)| *end <= index) {
            scalars.next();
        }
        let quoted = scalars.peek().is_some_and(|(start, _)| *start <= index);
        match c {
            '\n' => {
                line += 1;
                comment = false;
            }
            '#' if !quoted && before.is_whitespace() => comment = true,
            '\t' if !quoted && !comment => {
                let text = "a tab stands between tokens; YAML 1.1 allows only blanks: replace it";
                return Err(Fault { line, text: text.to_owned() });
            }
            _ => {}
        }
        before = c;
    }
    Ok(())
}
