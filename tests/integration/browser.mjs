// A real browser for the tests: takes a command a line on stdin, answers a line on stdout. Arguments: the folder of
// playwright-core and the path of Chromium.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const [folder, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(folder);
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const browser = await chromium.launch({ executablePath, args });

let context, page, complaints, asked;

const commands = {
  /** Opens an address in a browser nobody has used, with a viewport and a colour scheme. */
  async open({ url, options }) {
    await context?.close();
    context = await browser.newContext(options);
    [complaints, asked] = [[], []];
    page = await context.newPage();
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("request", (request) => asked.push(request.url()));
    const answer = await page.goto(url);
    return answer.status();
  },
  /** Goes on to another address in the same browser. */
  go: async ({ url }) => (await page.goto(url)).status(),
  evaluate: ({ script }) => page.evaluate(script),
  /** Whether an expression is true; on a page that is being left nothing is. */
  holds: ({ script }) => page.evaluate(script).catch(() => false),
  press: ({ key }) => page.keyboard.press(key).then(() => null),
  address: async () => page.url(),
  complaints: async () => complaints,
  asked: async () => asked,
  screenshot: ({ path }) => page.screenshot({ path, fullPage: true }).then(() => null),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { name, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ value: (await commands[name](given)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await browser.close();
