//! Aligned columns of text.

/// Which side of its column a cell stands on.
#[derive(Clone, Copy, PartialEq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows as lines with aligned columns, two blanks apart; the last column is never padded.
pub fn aligned(sides: &[Side], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..sides.len())
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|t| width(t)).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let blanks = " ".repeat(widths[c] - width(cell));
            match sides[c] {
                Side::Left => line += &format!("{cell}{blanks}"),
                Side::Right => line += &format!("{blanks}{cell}"),
            }
            line.push_str("  ");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_letters() {
        let row = |a: &str, b: &str, c: &str| vec![a.to_string(), b.to_string(), c.to_string()];
        let rows = [row("é", "7", "end"), row("long", "123", "")];
        let text = aligned(&[Side::Left, Side::Right, Side::Left], &rows);
        assert_eq!(text, "é       7  end\nlong  123\n");
    }
}
