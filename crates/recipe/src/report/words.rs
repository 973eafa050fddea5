//! Numbers and text as a person writes them, safe inside HTML.

/// A narrow space that does not break: between a number and its unit.
pub const THIN: &str = "\u{202f}";

/// Text for HTML, in element content and in attributes alike. Control characters, which a model
/// may well produce, become their visible pictures.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{7f}' => out.push('\u{2421}'),
            c if (c as u32) < 0x20 => {
                out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'));
            }
            c if is_bidi_control(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Characters that reorder what follows them and could make the page lie.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `4.9 million`, `1.1 billion`, `12,345`.
pub fn large(n: u64) -> String {
    let scaled = |by: f64, word: &str| {
        let x = n as f64 / by;
        let digits = usize::from(x < 100.0);
        format!("{}\u{a0}{word}", trim(format!("{x:.digits$}")))
    };
    match n {
        0..1_000_000 => count(n),
        1_000_000..999_500_000 => scaled(1e6, "million"),
        _ => scaled(1e9, "billion"),
    }
}

/// A number with about three digits that matter.
pub fn number(x: f64) -> String {
    if !x.is_finite() {
        return "not finite".into();
    }
    let size = x.abs();
    if size >= 1e15 || (size > 0.0 && size < 1e-4) {
        let text = format!("{x:.1e}");
        return match text.split_once('e') {
            Some((mantissa, power)) => {
                format!("{}×10{}", trim(mantissa.into()), superscript(power))
            }
            None => text,
        };
    }
    if size >= 1000.0 {
        let sign = if x < 0.0 { "−" } else { "" };
        return format!("{sign}{}", count(size.round() as u64));
    }
    let digits = digits(size);
    trim(format!("{x:.digits$}")).replace('-', "−")
}

/// `x` with as many digits after the point as `number` would compute for `like`, zeros kept: the
/// ends of an interval beside their estimate.
pub fn number_like(x: f64, like: f64) -> String {
    if !x.is_finite() || like.abs() >= 1000.0 || (like != 0.0 && like.abs() < 1e-4) {
        return number(x);
    }
    let digits = digits(like.abs());
    format!("{x:.digits$}").replace('-', "−")
}

/// Digits after the point that matter for a number of this size.
fn digits(size: f64) -> usize {
    match size {
        s if s >= 100.0 => 0,
        s if s >= 10.0 => 1,
        s if s >= 1.0 || s == 0.0 || !s.is_finite() => 2,
        s => (2.0 - s.log10().floor()) as usize,
    }
}

/// A share of one in percent: `95 %`, `3.7 %`, `0.04 %`.
pub fn percent(share: f64) -> String {
    format!("{}{THIN}%", percent_digits(share))
}

/// A share of one in percent with one digit after the point, for columns: `95.0 %`.
pub fn percent_even(share: f64) -> String {
    format!("{}{THIN}%", percent_digits_even(share))
}

/// The number in front of that percent sign.
pub fn percent_digits_even(share: f64) -> String {
    if !share.is_finite() {
        return "not finite".into();
    }
    // Rounding must not make a small number look like none.
    if share != 0.0 && share.abs() < 0.000_5 {
        return percent_digits(share);
    }
    format!("{:.1}", share * 100.0).replace('-', "−")
}

/// The number in front of the percent sign.
pub fn percent_digits(share: f64) -> String {
    let x = share * 100.0;
    if !x.is_finite() {
        return "not finite".into();
    }
    let digits = if x != 0.0 && x.abs() < 0.1 { 2 } else { 1 };
    trim(format!("{x:.digits$}")).replace('-', "−")
}

/// A relative change with its sign: `+4.6 %`.
pub fn change(ratio: f64) -> String {
    let share = ratio - 1.0;
    let sign = if share >= 0.0 { "+" } else { "" };
    format!("{sign}{}", percent(share))
}

/// A probability under the null: `p < 0.001`, `p = 0.013`.
pub fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {}", trim(format!("{p:.3}"))) }
}

/// `2 min 41 s`, `41 s`, `0.4 s`, `1 h 2 min`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".into();
    }
    if seconds < 9.95 {
        return format!("{}{THIN}s", trim(format!("{seconds:.1}")));
    }
    let s = seconds.round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    match (h, m) {
        (0, 0) => format!("{s}{THIN}s"),
        (0, _) => format!("{m}{THIN}min {s}{THIN}s"),
        _ => format!("{h}{THIN}h {m}{THIN}min"),
    }
}

/// `1.9 GB`, `340 MB`, `12 kB` (powers of ten, as disks and most system monitors count).
pub fn bytes(n: u64) -> String {
    let x = n as f64;
    let (scaled, unit) = match n {
        0..1000 => return format!("{n}{THIN}bytes"),
        1000..1_000_000 => (x / 1e3, "kB"),
        1_000_000..1_000_000_000 => (x / 1e6, "MB"),
        _ => (x / 1e9, "GB"),
    };
    let digits = usize::from(scaled < 100.0);
    format!("{}{THIN}{unit}", trim(format!("{scaled:.digits$}")))
}

/// A word with a capital first letter.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `1 row`, `2 rows`.
pub fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{}\u{a0}{}", count(n), if n == 1 { one } else { many })
}

/// Digits as superscripts: `-4` is `⁻⁴`.
pub fn superscript(text: &str) -> String {
    const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let raise = |c: char| match c.to_digit(10) {
        Some(d) => Some(RAISED[d as usize]),
        None => (c == '-').then_some('⁻'),
    };
    text.chars().filter_map(raise).collect()
}

/// Drops zeros at the end of a fraction.
fn trim(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".into() } else { short.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        assert_eq!(
            escape("<script>alert('x') && \"y\"</script>"),
            "&lt;script&gt;alert(&#39;x&#39;) &amp;&amp; &quot;y&quot;&lt;/script&gt;"
        );
        assert_eq!(escape("a\u{0}b\u{1b}[0m\nc"), "a\u{2400}b\u{241b}[0m\nc");
        assert_eq!(escape("a\u{202e}b"), "a\u{fffd}b");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(large(4_884_480), "4.9\u{a0}million");
        assert_eq!(large(134_515_008), "135\u{a0}million");
        assert_eq!(large(1_100_000_000), "1.1\u{a0}billion");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(0.0), "0");
        assert_eq!(number(0.034_56), "0.0346");
        assert_eq!(number(0.000_02), "2×10⁻⁵");
        assert_eq!(number(-1234.4), "−1,234");
        assert_eq!(number(f64::NAN), "not finite");
        assert_eq!(number_like(19.04, 18.11), "19.0");
        assert_eq!(number_like(1.0, 0.0123), "1.0000");
        assert_eq!(percent_even(0.95), "95.0\u{202f}%");
        assert_eq!(percent_even(0.0001), "0.01\u{202f}%");
        assert_eq!(percent(0.95), "95\u{202f}%");
        assert_eq!(percent(0.0004), "0.04\u{202f}%");
        assert_eq!(change(1.046), "+4.6\u{202f}%");
        assert_eq!(change(0.98), "−2\u{202f}%");
        assert_eq!(p_value(0.0004), "p < 0.001");
        assert_eq!(p_value(0.013), "p = 0.013");
        assert_eq!(duration(161.2), "2\u{202f}min 41\u{202f}s");
        assert_eq!(duration(0.42), "0.4\u{202f}s");
        assert_eq!(duration(3720.0), "1\u{202f}h 2\u{202f}min");
        assert_eq!(bytes(1_930_000_000), "1.9\u{202f}GB");
        assert_eq!(bytes(98_362_432), "98.4\u{202f}MB");
        assert_eq!(capital("exact match"), "Exact match");
    }
}
