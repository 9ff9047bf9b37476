//! Seconds since the epoch as a date, in UTC.

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

    /// `Jan`.
    pub(super) fn month_name(&self) -> &'static str {
        MONTHS[(self.month as usize + 11) % 12]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
