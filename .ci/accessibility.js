// Runs axe-core in Chromium on the files that are named, in light and dark and three widths. Exit code 1 for serious or critical faults.
const fs = require('fs');
const puppeteer = require('puppeteer-core');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
(async () => {
  let serious = 0;
  const browser = await puppeteer.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox'], headless: true});
  for (const file of process.argv.slice(2)) {
    for (const scheme of ['light', 'dark']) for (const width of [400, 1000, 1600]) {
      const page = await browser.newPage();
      await page.setBypassCSP(true);
      await page.setViewport({width, height: 900});
      await page.emulateMediaFeatures([{name: 'prefers-color-scheme', value: scheme}]);
      await page.goto('file://' + file);
      await page.evaluate(axe);
      const {violations, passes} = await page.evaluate(() => axe.run());
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      const bad = violations.filter(fault => ['serious', 'critical'].includes(fault.impact));
      serious += bad.length + (wide ? 1 : 0);
      for (const fault of violations) console.log(`  ${fault.impact}: ${fault.id}, ${fault.nodes.length} times, ${fault.nodes[0].target}`);
      if (wide) console.log('  serious: the page scrolls sideways');
      console.log(`${file} ${scheme} ${width}: ${violations.length} faults, ${passes.length} rules pass`);
      await page.close();
    }
  }
  await browser.close();
  process.exit(serious ? 1 : 0);
})();
