//! `strftime_now`: the date in a template, as C's `strftime` writes it (UTC).

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Year, month (1–12) and day of the proleptic Gregorian calendar, `days` after 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years are counted from 1 March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// `seconds` since 1970 in the given format.
pub fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (weekday, month_name) =
        (DAYS[(days + 4).rem_euclid(7) as usize], MONTHS[month as usize - 1]);
    let new_year = days - (1..month).fold(day - 1, |sum, m| sum + month_length(year, m));
    let of_year = days - new_year + 1;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = letters.next();
        // `%-d` drops the leading zero.
        let bare = directive == Some('-');
        if bare {
            directive = letters.next();
        }
        let pad = |n: i64, width: usize| if bare { n.to_string() } else { format!("{n:0width$}") };
        let twelve = (hour + 11) % 12 + 1;
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => pad(year.rem_euclid(100), 2),
            Some('m') => pad(month, 2),
            Some('d') => pad(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => pad(of_year, 3),
            Some('H') => pad(hour, 2),
            Some('I') => pad(twelve, 2),
            Some('M') => pad(minute, 2),
            Some('S') => pad(second, 2),
            Some('f') => "000000".to_string(),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('s') => seconds.to_string(),
            Some('w') => (days + 4).rem_euclid(7).to_string(),
            Some('u') => ((days + 3).rem_euclid(7) + 1).to_string(),
            // Python's naive time has no zone and prints nothing here.
            Some('z' | 'Z') => String::new(),
            Some('n') => "\n".to_string(),
            Some('t') => "\t".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let got = other.map_or("%".to_string(), |c| format!("%{c}"));
                let what = format!("strftime_now does not know {got}");
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        });
    }
    Ok(out)
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // 2024-02-29 was a Thursday, the 60th day of its year; 1 700 000 000 is a well-known moment.
        let leap = 1_709_164_800 + 13 * 3600 + 5 * 60 + 9;
        assert_eq!(
            strftime(leap, "%A %d %B %Y, %j, %I:%M:%S %p").unwrap(),
            "Thursday 29 February 2024, 060, 01:05:09 PM"
        );
        assert_eq!(
            strftime(1_700_000_000, "%Y-%m-%d %H:%M:%S %a %b").unwrap(),
            "2023-11-14 22:13:20 Tue Nov"
        );
        assert_eq!(strftime(0, "%-d/%-m/%y %w %u").unwrap(), "1/1/70 4 4");
        assert_eq!(strftime(-86_400, "%F %T").unwrap(), "1969-12-31 00:00:00");
        assert!(strftime(0, "%Q").unwrap_err().to_string().contains("%Q"));
    }
}
