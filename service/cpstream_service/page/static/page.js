// What every page does beyond what its HTML says: charts as they come into view, and looking whether figures are ready.

import { watch } from "./charts.js";
import { poll } from "./progress.js";

for (const plot of document.querySelectorAll(".plot")) watch(plot);
for (const notice of document.querySelectorAll("[data-poll]")) poll(notice);
