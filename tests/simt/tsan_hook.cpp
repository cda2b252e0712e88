// Preloaded before libtsan: counts its reports, so that a launch ends at its first race and not after thousands.
extern "C" {

int simt_tsan_reports;

void __tsan_on_report(void*) { ++simt_tsan_reports; }
}
