//! Seconds since the epoch as a date, in UTC, and back.

use std::io::Write as _;

/// Names as HTTP and nginx's log write them.
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A moment, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) year: u64,
    /// 1 to 12.
    pub(super) month: u64,
    pub(super) day: u64,
    pub(super) hour: u64,
    pub(super) minute: u64,
    pub(super) second: u64,
    /// `Thu`.
    pub(super) weekday: &'static str,
}

impl Moment {
    /// That of so many seconds after the epoch.
    pub(super) fn of(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Civil date from days, counting years from March so that the leap day comes last.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let of_era = shifted % 146_097;
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: of_year - (153 * from_march + 2) / 5 + 1,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            weekday: DAYS[(days % 7) as usize],
        }
    }

    /// As HTTP writes it (IMF-fixdate, RFC 9110 5.6.7).
    pub(super) fn imf_fixdate(&self, out: &mut Vec<u8>) {
        let Self { year, day, hour, minute, second, weekday, .. } = self;
        let month = self.month_name();
        let _ = write!(out, "{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT");
    }

    /// As nginx dates cookies: the year has two digits, for as long as nobody takes them for one of the last century.
    pub(super) fn cookie_date(&self, out: &mut Vec<u8>) {
        let Self { year, day, hour, minute, second, weekday, .. } = self;
        let (month, year) = (self.month_name(), if *year > 2037 { *year } else { *year % 100 });
        let _ = write!(out, "{weekday}, {day:02}-{month}-{year:02} {hour:02}:{minute:02}:{second:02} GMT");
    }

    /// `Jan`.
    pub(super) fn month_name(&self) -> &'static str {
        MONTHS[(self.month as usize + 11) % 12]
    }
}

/// Seconds since the epoch of a date in one of HTTP's three forms (RFC 9110 5.6.7).
pub(super) fn parse(date: &[u8]) -> Option<u64> {
    let date = std::str::from_utf8(date).ok()?;
    let words: Vec<_> = date.split([' ', ',', '-']).filter(|word| !word.is_empty()).collect();
    let (day, month, year, time) = match *words {
        [_, day, month, year, time, "GMT" | "UTC"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let number = |digits: &str| digits.parse::<u64>().ok();
    let year = match (year.len(), number(year)?) {
        (2, short @ ..70) => 2000 + short,
        (2, short) => 1900 + short,
        (4, whole) => whole,
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let mut parts = time.split(':').map(number);
    let [hour, minute, second] = [parts.next()??, parts.next()??, parts.next()??];
    let day = number(day)?;
    if parts.next().is_some() || day > 31 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = (days(year, month, day)? * 24 + hour) * 3600 + minute * 60 + second;
    let Moment { day: known, .. } = Moment::of(seconds - second);
    (known == day).then_some(seconds)
}

/// Days from the epoch to a civil date, the reverse of [`Moment::of`]; a day that its month does not have is one
/// of the next.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, from_march) = if month <= 2 { (year.checked_sub(1)?, month + 9) } else { (year, month - 3) };
    let of_era = year % 400;
    let of_year = (153 * from_march + 2) / 5 + day;
    let days = year / 400 * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    // One for the day itself, which is counted from one.
    days.checked_sub(719_468 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_dated_as_by_nginx() {
        for (seconds, date) in [
            (784_111_777, "Sun, 06-Nov-94 08:49:37 GMT"),
            (951_782_400, "Tue, 29-Feb-00 00:00:00 GMT"),
            (2_145_916_799, "Thu, 31-Dec-37 23:59:59 GMT"),
            (2_145_916_800, "Fri, 01-Jan-2038 00:00:00 GMT"),
        ] {
            let mut out = Vec::new();

            Moment::of(seconds).cookie_date(&mut out);

            assert_eq!(String::from_utf8(out).unwrap(), date, "{seconds}");
        }
    }

    #[test]
    fn dates_of_http_are_read_in_all_their_forms_and_nothing_else_is() {
        for (date, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400)),
            ("Monday, 01-Mar-69 00:00:00 GMT", Some(3_129_321_600)),
            ("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_800)),
            ("Wed, 31 Dec 1969 23:59:59 GMT", None),
            ("Thu, 29 Feb 2001 00:00:00 GMT", None),
            ("Sun, 00 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 08:49:37:1 GMT", None),
            ("Sun, 06 Nov 19940 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 99999999999999999999 Nov 1994 08:49:37 GMT", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(parse(date.as_bytes()), seconds, "{date}");
        }
        for seconds in (0..4_102_444_800).step_by(86_399 * 7) {
            let mut date = Vec::new();
            Moment::of(seconds).imf_fixdate(&mut date);
            assert_eq!(parse(&date), Some(seconds));
        }
    }

    #[test]
    fn seconds_become_the_date_that_everybody_else_makes_of_them() {
        for (seconds, date) in [
            (0, (1970, 1, 1, 0, 0, 0, "Thu")),
            (784_111_777, (1994, 11, 6, 8, 49, 37, "Sun")),
            (951_782_399, (2000, 2, 28, 23, 59, 59, "Mon")),
            (951_782_400, (2000, 2, 29, 0, 0, 0, "Tue")),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0, "Mon")),
        ] {
            let Moment { year, month, day, hour, minute, second, weekday } = Moment::of(seconds);

            assert_eq!((year, month, day, hour, minute, second, weekday), date, "{seconds}");
        }
    }
}
