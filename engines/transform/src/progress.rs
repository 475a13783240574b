//! ffmpeg's `-progress` lines (`key=value`, a block ending with `progress=continue` or `progress=end`) as progress that
//! never runs backwards.

/// Millionths that make a whole.
const WHOLE_PPM: u64 = 1_000_000;

/// Progress at the end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Millionths done; unknown when the length of the output is.
    pub(crate) ratio_ppm: Option<u32>,
    /// Media done, in milliseconds.
    pub(crate) media_millis: u64,
}

/// Reads progress lines.
#[derive(Debug)]
pub(crate) struct Meter {
    expected_micros: Option<u64>,
    done_micros: u64,
}

impl Meter {
    /// For an output that should last so many microseconds.
    pub(crate) const fn new(expected_micros: Option<u64>) -> Self {
        Self { expected_micros, done_micros: 0 }
    }

    /// Takes a line; a report when it ends a block. What it does not understand (`N/A`, negative times before the first
    /// packet, keys of other versions) changes nothing.
    pub(crate) fn read(&mut self, line: &str) -> Option<Report> {
        match line.trim().split_once('=')? {
            ("out_time_us", value) => {
                self.done_micros = self.done_micros.max(value.trim().parse().unwrap_or(0));
                None
            }
            ("progress", _) => Some(self.report()),
            _ => None,
        }
    }

    fn report(&self) -> Report {
        let ratio = self.expected_micros.filter(|expected| *expected > 0).map(|expected| {
            let ppm = u128::from(self.done_micros) * u128::from(WHOLE_PPM) / u128::from(expected);
            u32::try_from(ppm.min(u128::from(WHOLE_PPM))).unwrap_or(1_000_000)
        });
        Report { ratio_ppm: ratio, media_millis: self.done_micros / 1000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(expected_micros: Option<u64>, text: &str) -> Vec<Report> {
        let mut meter = Meter::new(expected_micros);
        text.lines().filter_map(|line| meter.read(line)).collect()
    }

    #[test]
    fn blocks_become_reports() {
        // ffmpeg 5.1, shortened.
        let text = "frame=1\nfps=0.00\nstream_0_0_q=0.0\nbitrate=   8.3kbits/s\ntotal_size=48\nout_time_us=46440\n\
            out_time_ms=46440\nout_time=00:00:00.046440\ndup_frames=0\nspeed=12.4x\nprogress=continue\n\
            frame=57\nout_time_us=2240078\nprogress=end\n";
        let expected = [(11_610, 46), (560_019, 2240)]
            .map(|(ppm, media_millis)| Report { ratio_ppm: Some(ppm), media_millis });
        assert_eq!(reports(Some(4_000_000), text), expected);
    }

    #[test]
    fn it_never_runs_backwards_nor_beyond_the_whole() {
        let text = "out_time_us=3000000\nprogress=continue\nout_time_us=-9223372036854775807\nprogress=continue\n\
            out_time_us=N/A\nprogress=continue\nout_time_us=1000000\nprogress=continue\nout_time_us=9000000\nprogress=end";
        let ratios: Vec<_> =
            reports(Some(4_000_000), text).iter().map(|report| report.ratio_ppm.unwrap()).collect();
        assert_eq!(ratios, [750_000, 750_000, 750_000, 750_000, 1_000_000]);
    }

    #[test]
    fn an_unknown_length_gives_no_ratio() {
        let text = "garbage\n=\nout_time_us=18446744073709551615\nprogress=continue";
        assert_eq!(reports(None, text), [Report { ratio_ppm: None, media_millis: u64::MAX / 1000 }]);
        assert_eq!(reports(Some(0), "progress=end")[0].ratio_ppm, None);
        assert_eq!(reports(Some(1), text)[0].ratio_ppm, Some(1_000_000));
    }
}
